"""Demonstrations on disk: one episode per `.npz` file, readable with numpy alone.

Knows the format and nothing of simulators or networks. `docs/demonstrations.md` says why the format is as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

FORMAT_VERSION = 1
PRIVILEGED_NAMES = (
    *("hand_x", "hand_y", "hand_z", "finger_gap"),
    *("object_from_hand_x", "object_from_hand_y", "object_from_hand_z"),
    *("goal_from_object_x", "goal_from_object_y", "goal_from_object_z"),
)


class DemonstrationError(ValueError):
    """A file is not a readable demonstration; the message names it and says what is wrong."""


@dataclass(frozen=True, slots=True)
class DemonstrationMeta:
    """Where an episode comes from.

    suite, task, seed: what to reset to see the same scene again (a random reset with this seed).
    driver: who chose the executed actions ("expert", or a policy's name); the labels are always the expert's.
    noise: standard deviation of the bursts added to the executed actions, 0 for none.
    renderer: name of the GL renderer that made the frames, which differ slightly between renderers.
    versions: package name to version of everything that shapes physics and pictures.
    stride: control steps from one row to the next; more than 1 where only some moments were kept.
    """

    suite: str
    task: int
    instruction: str
    seed: int
    success: bool
    driver: str = "expert"
    noise: float = 0.0
    renderer: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    stride: int = 1

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ValueError(f"format version {self.format_version} is not {FORMAT_VERSION}, the one this code reads")

    @classmethod
    def load(cls, path: Path | str) -> DemonstrationMeta:
        """Read this alone, without the frames; errors as of `Demonstration.load`."""
        with _opened(path) as file:
            return _read_meta(file)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One episode of T rows, one in `meta.stride` control steps. Row t belongs to the moment before action t.

    jpeg: uint8 `[bytes]`, the frames' JPEG streams one after another, as made by `policy.openvla.images.encode_frame`;
        empty where the frames are still to be rendered.
    jpeg_offsets: int64 `[T + 1]`, frame t is `jpeg[jpeg_offsets[t] : jpeg_offsets[t + 1]]`; zeros without frames.
    actions: float32 `[T, 7]`, the label: what the expert would do. Pose as for LIBERO, gripper 1 = open, 0 = closed.
    executed: float32 `[T, 7]`, what was done instead, in the same convention.
    privileged: float32 `[T, 10]`, see PRIVILEGED_NAMES; metres, world axes. Targets for training, not for acting.
    states: float64 `[T, 1 + nq + nv]`, the simulator's time, positions and velocities.
    pictured: float64 `[T, nq]`, the positions that frame t shows, up to two physics steps older than the state; with
        them and the bodies' places the frame can be rendered again.
    body_positions, body_quaternions: float64 `[bodies, 3]` and `[bodies, 4]` (w first), where bodies are fixed to their
        parents; the reset places fixtures there, and the state does not hold it.
    """

    meta: DemonstrationMeta
    jpeg: np.ndarray
    jpeg_offsets: np.ndarray
    actions: np.ndarray
    executed: np.ndarray
    privileged: np.ndarray
    states: np.ndarray
    pictured: np.ndarray
    body_positions: np.ndarray
    body_quaternions: np.ndarray

    def __post_init__(self) -> None:
        steps = len(self.actions)
        expected = {"actions": 7, "executed": 7, "privileged": len(PRIVILEGED_NAMES)}
        for name, width in expected.items():
            if getattr(self, name).shape != (steps, width):
                raise ValueError(f"{name} must be [{steps}, {width}], got {list(getattr(self, name).shape)}")
        for name in ("states", "pictured"):
            if len(getattr(self, name)) != steps:
                raise ValueError(f"{name} must have {steps} rows, one per action, got {len(getattr(self, name))}")
        offsets, end = self.jpeg_offsets, len(self.jpeg)
        if not self.has_frames and offsets.shape == (steps + 1,) and not offsets.any():
            return
        if offsets.shape != (steps + 1,) or (offsets[0], offsets[-1]) != (0, end) or (np.diff(offsets) < 1).any():
            raise ValueError(f"jpeg_offsets must rise from 0 to {end} in {steps} steps")

    @property
    def has_frames(self) -> bool:
        """False for an episode that was recorded without rendering."""
        return len(self.jpeg) > 0

    def __len__(self) -> int:
        return len(self.actions)

    def require_every_step(self) -> None:
        """Raises DemonstrationError where steps are left out: for readers that follow the motion."""
        if self.meta.stride != 1:
            raise DemonstrationError(
                f"{self.file_name} has one row in {self.meta.stride} control steps and all are needed here; "
                "record with stride 1"
            )

    def frame_jpeg(self, step: int) -> bytes:
        """The JPEG stream of one frame; `policy.openvla.images.decode_frame` makes the training image of it.

        Raises IndexError for a step outside 0..T-1 and DemonstrationError where frames were never rendered.
        """
        if not self.has_frames:
            raise DemonstrationError(f"{self.file_name} was recorded without frames; run scripts/render_demos.py")
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of a demonstration with steps 0 to {len(self) - 1}")
        return self.jpeg[self.jpeg_offsets[step] : self.jpeg_offsets[step + 1]].tobytes()

    @property
    def file_name(self) -> str:
        """The name a collection stores this episode under."""
        return demonstration_name(self.meta.suite, self.meta.task, self.meta.seed)

    def save(self, path: Path | str) -> None:
        """Write the file; it appears under its name only when it is complete."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with unfinished.open("wb") as file:
                # JPEG does not compress further, so neither is anything else: plain entries load several times faster.
                np.savez(file, meta=json.dumps(asdict(self.meta), sort_keys=True), **arrays)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path | str) -> Demonstration:
        """Read a file; DemonstrationError says what is wrong with one that is damaged or of another format."""
        with _opened(path) as file:
            return cls(_read_meta(file), **{name: file[name] for name in _ARRAYS})


_ARRAYS = tuple(entry.name for entry in fields(Demonstration) if entry.name != "meta")


@contextmanager
def _opened(path: Path | str) -> Iterator[Mapping[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise DemonstrationError(f"{path} is not a demonstration of format {FORMAT_VERSION}: {error}") from error


def _read_meta(file: Mapping[str, np.ndarray]) -> DemonstrationMeta:
    stored = json.loads(str(file["meta"]))
    if stored.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"its format version is {stored.get('format_version')}, this code reads {FORMAT_VERSION}")
    return DemonstrationMeta(**stored)


def demonstration_name(suite: str, task: int, seed: int) -> str:
    """File name of an episode, so that a collection can be resumed by looking at the files it has."""
    return f"{suite}_task{task:02d}_seed{seed}.npz"


def list_demonstrations(directory: Path | str) -> list[Path]:
    """All complete demonstrations directly in a folder, sorted by name; an absent folder has none."""
    return sorted(path for path in Path(directory).glob("*.npz") if not path.name.startswith("."))
