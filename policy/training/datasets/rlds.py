"""RLDS data sets as TensorFlow Datasets stores them: pictures of one camera and instructions, by episode.

Knows the names that data sets for OpenVLA have (`steps/observation/<camera>`, `steps/language_instruction`) and the
names of the files, and needs neither TensorFlow nor TensorFlow Datasets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from policy.training.camera_episode import CameraEpisode, split_by_instruction
from policy.training.datasets.pictures import choose_camera, decode_picture, is_picture
from policy.training.datasets.tfrecord import byte_lists, read_records

SPLIT = "train"
_OBSERVATION = "steps/observation/"
# OpenVLA's own data sets have the first; some of Open X-Embodiment have the second.
_INSTRUCTIONS = ("steps/language_instruction", f"{_OBSERVATION}natural_language_instruction")
_SHARD = re.compile(rf".+-{SPLIT}\.(?P<format>\w+)-\d{{5}}-of-(?P<count>\d{{5}})")


class RLDSFolder:
    """One camera of an RLDS data set's training split.

    folder: that of a version, with `features.json`. camera: name of an observation, such as "image"; left out, there
    must be only one with pictures.
    Raises ValueError for cameras that are not there, other file formats and damaged files.
    """

    def __init__(self, folder: Path | str, camera: str | None = None) -> None:
        self.folder = Path(folder)
        self._shards = self._find_shards()
        first = next((record for shard in self._shards for record in read_records(shard)), None)
        if first is None:
            raise ValueError(f"{self.folder} has no episodes")
        lists = byte_lists(first)
        self.camera = self._choose(camera, lists)
        self._instruction = next((name for name in _INSTRUCTIONS if name in lists), "")
        if not self._instruction:
            texts = [name for name, values in lists.items() if name.startswith("steps/") and not is_picture(values[0])]
            raise ValueError(
                f"{self.folder} has no {' or '.join(_INSTRUCTIONS)}, only {', '.join(texts) or 'no texts'}; write an "
                "adapter, see docs/drafters.md"
            )

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Whether a folder is a version of a data set of TensorFlow Datasets, by its files."""
        return (folder / "features.json").is_file()

    def episodes(self) -> Iterator[CameraEpisode]:
        """All of them, as stored, in the order of the files, which were shuffled when they were written.

        An episode in which the instruction changes is given in parts.
        """
        for shard in self._shards:
            for number, record in enumerate(read_records(shard)):
                name = f"{shard.name}-{number}"
                try:
                    lists = byte_lists(record)
                    instructions = [text.decode() for text in lists.get(self._instruction, ())]
                    images = map(decode_picture, lists.get(_OBSERVATION + self.camera, ()))
                    yield from split_by_instruction(name, instructions, images)
                except ValueError as error:
                    raise ValueError(f"{shard}, record {number}: {error}") from error

    def _find_shards(self) -> list[Path]:
        """The split's files, all there and in order."""
        found = {path: match for path in sorted(self.folder.iterdir()) if (match := _SHARD.fullmatch(path.name))}
        if not found:
            raise ValueError(f"{self.folder} has no files of the split {SPLIT!r}; fetch the whole data set")
        formats = {match["format"] for match in found.values()}
        if formats != {"tfrecord"}:
            raise ValueError(f"{self.folder} has {', '.join(sorted(formats))} files; only tfrecord is supported")
        counts = {int(match["count"]) for match in found.values()}
        if counts != {len(found)}:
            raise ValueError(f"{self.folder} has {len(found)} of {max(counts)} files of the split {SPLIT!r}")
        return list(found)

    def _choose(self, camera: str | None, lists: dict[str, list[bytes]]) -> str:
        cameras = [
            name.removeprefix(_OBSERVATION)
            for name, values in lists.items()
            if name.startswith(_OBSERVATION) and is_picture(values[0])
        ]
        return choose_camera(camera, cameras, self.folder)
