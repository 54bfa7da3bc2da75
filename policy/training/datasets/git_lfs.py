"""Files of which Git has only brought the pointer: what a clone of a data set without Git LFS leaves."""

from __future__ import annotations

from pathlib import Path

_BEGINNING = b"version https://git-lfs.github.com/spec/"


def pointer_hint(path: Path) -> str:
    """What to add to the message about a file that cannot be read: empty, or the way out where it is a pointer."""
    with path.open("rb") as stream:
        pointer = stream.read(len(_BEGINNING)) == _BEGINNING
    return "; it is a pointer of Git LFS, run `git lfs pull` in the data set" if pointer else ""
