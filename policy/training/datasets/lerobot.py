"""LeRobot data sets on disk, formats v2.0 to v3.0: pictures of one camera and instructions, by episode.

Knows the files (Parquet, MP4, JSON) and does not need lerobot, whose releases each read one format and ask for an older
torch. Described in lerobot's documentation, "LeRobotDataset v3.0", and in each data set's `meta/info.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policy.training.camera_episode import CameraEpisode, split_by_instruction
from policy.training.datasets.extra import import_extra
from policy.training.datasets.git_lfs import pointer_hint
from policy.training.datasets.pictures import choose_camera, decode_picture
from policy.training.datasets.video import read_frames

FORMATS = ("v2.0", "v2.1", "v3.0")
SPLIT = "train"
_INFO = Path("meta", "info.json")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an episode lies. video: empty where pictures lie in the data; start: its first frame's time in there."""

    number: int
    steps: int
    data: Path
    video: Path | None = None
    start: float = 0.0


class LeRobotFolder:
    """One camera of a LeRobot data set's training split, or of all episodes where it names none.

    camera: name of a feature, such as "observation.images.front"; left out, there must be only one with pictures.
    Raises ValueError for other formats, absent cameras and damaged files, FileNotFoundError for missing files.
    """

    def __init__(self, folder: Path | str, camera: str | None = None) -> None:
        self.folder = Path(folder)
        self._info = _read_json(self.folder / _INFO)
        self.version = self._entry("codebase_version")
        if self.version not in FORMATS:
            raise ValueError(
                f"{self.folder} has LeRobot's format {self.version}; it must be one of {', '.join(FORMATS)}: convert "
                "it with lerobot"
            )
        self.camera = self._choose(camera)
        self._pq: Any = import_extra("pyarrow.parquet", "a LeRobot data set")
        self._filmed = self._features()[self.camera]["dtype"] == "video"
        self._places = self._find_places()
        self._tasks = self._read_tasks()

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Whether a folder is a LeRobot data set, by its files."""
        return (folder / _INFO).is_file()

    def __len__(self) -> int:
        """The number of episodes."""
        return len(self._places)

    def episodes(self) -> Iterator[CameraEpisode]:
        """All of them, as stored, in an arbitrary but fixed order: whoever stops early has seen some of each task.

        An episode in which the task changes is given in parts.
        """
        for index in np.random.default_rng(0).permutation(len(self._places)):
            yield from self._episode(self._places[index])

    def _episode(self, place: _Place) -> Iterator[CameraEpisode]:
        columns = ["timestamp", "task_index"] + ([] if self._filmed else [self.camera])
        rows = self._read_table(place.data, columns, [("episode_index", "=", place.number)])
        if len(rows) != place.steps:
            raise ValueError(f"{place.data} has {len(rows)} of {place.steps} steps of episode {place.number}")
        instructions = [self._instruction(place, task) for task in rows["task_index"].to_pylist()]
        if place.video is not None:
            times = [place.start + time for time in rows["timestamp"].to_pylist()]
            images = read_frames(place.video, times, tolerance=0.45 / self._entry("fps"))
        else:
            images = (self._picture(place, value) for value in rows[self.camera].to_pylist())
        yield from split_by_instruction(str(place.number), instructions, images)

    def _picture(self, place: _Place, value: Any) -> np.ndarray:
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise ValueError(f"{place.data} has no pictures in {self.camera}, only their paths; write it with lerobot")
        try:
            return decode_picture(data)
        except ValueError as error:
            raise ValueError(f"{place.data}, {self.camera}, episode {place.number}: {error}") from error

    def _instruction(self, place: _Place, task: int) -> str:
        if task not in self._tasks:
            known = ", ".join(map(str, sorted(self._tasks)))
            raise ValueError(f"{place.data} has task {task} in episode {place.number}; the listed tasks are {known}")
        return self._tasks[task] or ""  # a text that is null is none

    def _features(self) -> dict[str, Any]:
        return self._entry("features")

    def _choose(self, camera: str | None) -> str:
        pictures = [
            name
            for name, feature in self._features().items()
            if feature.get("dtype") in ("image", "video") and not (feature.get("info") or {}).get("video.is_depth_map")
        ]
        return choose_camera(camera, pictures, self.folder)

    def _find_places(self) -> list[_Place]:
        find = self._places_of_v3 if self.version == "v3.0" else self._places_of_v2
        numbers = self._training_split()
        places = [place for place in find() if numbers is None or place.number in numbers]
        if not places:
            raise ValueError(f"{self.folder} has no episodes")
        return places

    def _training_split(self) -> range | None:
        """The episodes' numbers, None where the data set names no such split, and then all are read."""
        split = (self._info.get("splits") or {}).get(SPLIT)
        if split is None:
            return None
        try:
            first, end = map(int, split.split(":"))
        except (AttributeError, ValueError) as error:
            raise ValueError(f'{self.folder / _INFO} has split {SPLIT} {split!r}; it must be like "0:50"') from error
        return range(first, end)

    def _places_of_v2(self) -> Iterator[_Place]:
        """A file for each episode."""
        for entry in _read_lines(self.folder / "meta" / "episodes.jsonl", "episode_index", "length"):
            number = entry["episode_index"]
            names = {"episode_chunk": number // self._entry("chunks_size"), "episode_index": number}
            video = self._path("video_path", video_key=self.camera, **names) if self._filmed else None
            yield _Place(number, entry["length"], self._path("data_path", **names), video)

    def _places_of_v3(self) -> Iterator[_Place]:
        """Many episodes in a file, one behind the other."""
        video = f"videos/{self.camera}/"
        columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        if self._filmed:
            columns += [video + name for name in ("chunk_index", "file_index", "from_timestamp")]
        files = sorted((self.folder / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise FileNotFoundError(f"{self.folder}/meta/episodes has no Parquet files; fetch the whole data set")
        for entry in (entry for file in files for entry in self._read_table(file, columns).to_pylist()):
            data = self._path("data_path", **_numbers(entry, "data/"))
            place = _Place(entry["episode_index"], entry["length"], data)
            if self._filmed:
                path = self._path("video_path", video_key=self.camera, **_numbers(entry, video))
                place = _Place(place.number, place.steps, data, path, entry[video + "from_timestamp"])
            yield place

    def _read_tasks(self) -> dict[int, str]:
        """Instruction by number."""
        if self.version != "v3.0":
            entries = _read_lines(self.folder / "meta" / "tasks.jsonl", "task_index", "task")
            return {entry["task_index"]: entry["task"] for entry in entries}
        table = self._read_table(self.folder / "meta" / "tasks.parquet")
        # The texts are the index of a pandas frame, which is called so where it has no name of its own.
        name = "task" if "task" in table.column_names else "__index_level_0__"
        if name not in table.column_names:
            raise ValueError(f"{self.folder}/meta/tasks.parquet has no texts, only {', '.join(table.column_names)}")
        return dict(zip(table["task_index"].to_pylist(), table[name].to_pylist(), strict=True))

    def _read_table(self, path: Path, columns: list[str] | None = None, filters: Any = None) -> Any:
        """A pyarrow table of a Parquet file."""
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; fetch the whole data set")
        try:
            there = self._pq.read_schema(path).names
            absent = [name for name in columns or () if name not in there]
            if absent:
                raise ValueError(f"it has no {', '.join(absent)}, only {', '.join(there)}")
            return self._pq.read_table(path, columns=columns, filters=filters)
        except (ValueError, OSError) as error:  # pyarrow's errors are one or the other
            raise ValueError(f"{path} cannot be used: {error}{pointer_hint(path)}") from error

    def _path(self, entry: str, **numbers: Any) -> Path:
        """A path of the data set by a pattern in `info.json`."""
        pattern = self._entry(entry)
        try:
            return self.folder / pattern.format(**numbers)
        except (KeyError, AttributeError) as error:
            raise ValueError(f"{self.folder / _INFO} has {entry} {pattern!r}, not one of {self.version}") from error

    def _entry(self, name: str) -> Any:
        if name not in self._info:
            raise ValueError(f"{self.folder / _INFO} has no {name}; it has {', '.join(self._info)}")
        return self._info[name]


def _numbers(entry: dict[str, Any], prefix: str) -> dict[str, int]:
    return {name: entry[prefix + name] for name in ("chunk_index", "file_index")}


def _read_json(path: Path) -> dict[str, Any]:
    return _parsed(path, path.read_text(encoding="utf-8"))


def _read_lines(path: Path, *names: str) -> list[dict[str, Any]]:
    """A JSON object with at least these names in each line."""
    entries = [_parsed(path, line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for name in names:
        if any(name not in entry for entry in entries):
            raise ValueError(f"{path} has a line without {name}")
    return entries


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}{pointer_hint(path)}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {text[:40]!r}")
    return value
