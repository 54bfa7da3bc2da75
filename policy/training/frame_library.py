"""Frames and instructions to train a drafter on: where they come from, and a store in memory.

Actions are not among them: a drafter learns what its target does, and the target is asked. So any pictures of the
target's world serve, labelled or not. Knows the demonstration format, which folders are data sets of others, and how to
ask a stranger's code for episodes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from policy.openvla.config import IMAGE_SIDE
from policy.openvla.images import ImagePath, PreprocessorSettings, center_crop, decode_frame, sized_frame
from policy.openvla.resampling import lanczos_resize
from policy.training.camera_episode import CameraEpisode, CameraEpisodes
from policy.training.datasets.lerobot import LeRobotFolder
from policy.training.datasets.rlds import RLDSFolder
from policy.training.demonstrations import Demonstration, list_demonstrations
from policy.training.frames import is_held_out

FRAME_SHAPE = (IMAGE_SIDE, IMAGE_SIDE, 3)


@dataclass(frozen=True, slots=True)
class FrameSource:
    """frames: a folder of demonstrations, a LeRobot data set, the version of an RLDS data set, or "module:function", an
        adapter.
    camera: which of a data set's cameras; may be left out where there is one.
    turned: whether a data set stores pictures turned by 180 degrees against what the camera gives to a policy. Left
        out, they are where the target is of LIBERO, as in all of LIBERO's published LeRobot and RLDS data sets.

    Demonstrations and adapters have one camera and know how it is turned.
    """

    frames: str
    camera: str | None = None
    turned: bool | None = None


@dataclass(frozen=True, slots=True)
class SizedEpisode:
    """frames: uint8 `[T, 224, 224, 3]`, as the network sees them but for normalisation."""

    name: str
    instruction: str
    frames: np.ndarray


def read_episodes(
    source: FrameSource, image_path: ImagePath, settings: PreprocessorSettings, processes: int
) -> Iterator[SizedEpisode]:
    """The episodes of a source. Raises ValueError for one that is none or has nothing, and for damaged files."""
    folder = Path(source.frames)
    if LeRobotFolder.holds(folder) or RLDSFolder.holds(folder):
        turned = image_path == "libero" if source.turned is None else source.turned
        data_set = (LeRobotFolder if LeRobotFolder.holds(folder) else RLDSFolder)(folder, source.camera)
        prepare = stored_frame if turned else sized_frame
        yield from _sized(data_set.episodes(), lambda image: prepare(image, image_path, settings))
    elif (source.camera, source.turned) != (None, None):
        raise ValueError(
            f"camera {source.camera!r} and turned {source.turned} are for LeRobot and RLDS data sets, and "
            f"{source.frames!r} is neither; leave them out"
        )
    elif folder.is_dir():
        yield from _demonstration_episodes(folder, processes)
    else:
        yield from _sized(_adapter(source.frames)(), lambda image: sized_frame(image, image_path, settings))


def stored_frame(image: np.ndarray, path: ImagePath, settings: PreprocessorSettings) -> np.ndarray:
    """As `sized_frame`, of a picture uint8 `[H, W, 3]` that was stored turned by 180 degrees.

    The LIBERO path imitates such data sets: it turns and compresses what a camera gives, which was done to these
    pictures before they were stored. So only what follows is left to do, and a second JPEG is not put upon the first.
    """
    if path == "libero":
        return center_crop(lanczos_resize(image, IMAGE_SIDE))
    return sized_frame(image[::-1, ::-1], path, settings)


def _sized(episodes: Iterable[CameraEpisode], prepare: Callable[[np.ndarray], np.ndarray]) -> Iterator[SizedEpisode]:
    for episode in episodes:
        frames = [prepare(np.asarray(image)) for image in episode.images]
        if frames:
            yield SizedEpisode(episode.name, episode.instruction, np.stack(frames))


def _demonstration_episodes(folder: Path, processes: int) -> Iterator[SizedEpisode]:
    paths = list_demonstrations(folder)
    if not paths:
        versions = [str(path) for path in sorted(folder.iterdir()) if RLDSFolder.holds(path)]
        hint = f"give {versions[-1]}" if versions else "record some with scripts/collect_demos.py"
        raise ValueError(f"{folder} has no demonstrations and is no LeRobot or RLDS data set; {hint}")
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_read_demonstration, paths)


def _read_demonstration(path: Path) -> SizedEpisode:
    """Runs in a process of its own. The stored frames are those of the LIBERO path before the crop."""
    demonstration = Demonstration.load(path)
    frames = [center_crop(decode_frame(demonstration.frame_jpeg(step))) for step in range(len(demonstration))]
    return SizedEpisode(path.name, demonstration.meta.instruction, np.stack(frames))


def _adapter(source: str) -> CameraEpisodes:
    module, _, name = source.partition(":")
    try:
        if not name:
            raise ValueError("no such folder")
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"frames are {source!r}; they must be a folder (demonstrations, a LeRobot or an RLDS data set) or "
            f"'module:function' that yields CameraEpisode: {error}"
        ) from error
    return found


class FrameLibrary:
    """Frames in host memory, 150,528 bytes each.

    frames: uint8 `[N, 224, 224, 3]`. instructions: the different texts. task: int64 `[N]`, index into them.
    """

    def __init__(self, frames: Tensor, task: Tensor, instructions: Sequence[str]) -> None:
        self.frames, self.task, self.instructions = frames, task, tuple(instructions)

    def __len__(self) -> int:
        return len(self.frames)

    def texts(self, rows: Tensor) -> tuple[str, ...]:
        return tuple(self.instructions[task] for task in self.task[rows].tolist())


def load_libraries(
    episodes: Iterable[SizedEpisode], capacity: int, held_out_every: int
) -> tuple[FrameLibrary, FrameLibrary]:
    """Training and validation frames; every so many-th episode, chosen by name, is for validation.

    Reads until `capacity` frames are there. Raises ValueError where either part stays empty.
    """
    parts: tuple[list[SizedEpisode], list[SizedEpisode]] = ([], [])
    count = 0
    for episode in episodes:
        if count + len(episode.frames) > capacity:
            break
        parts[is_held_out(Path(episode.name), held_out_every)].append(episode)
        count += len(episode.frames)
    if not all(parts):
        raise ValueError(
            f"{len(parts[0])} episodes to train on and {len(parts[1])} to validate with, {count} frames in all; both "
            f"are needed: give more episodes, or another capacity ({capacity}) or held_out_every ({held_out_every})"
        )
    training, validation = (_library(part) for part in parts)
    return training, validation


def _library(episodes: Sequence[SizedEpisode]) -> FrameLibrary:
    instructions = list(dict.fromkeys(episode.instruction for episode in episodes))
    frames = torch.empty((sum(len(episode.frames) for episode in episodes), *FRAME_SHAPE), dtype=torch.uint8)
    task, first = torch.empty(len(frames), dtype=torch.int64), 0
    for episode in episodes:
        rows = slice(first, first + len(episode.frames))
        frames[rows] = torch.from_numpy(episode.frames)
        task[rows] = instructions.index(episode.instruction)
        first += len(episode.frames)
    return FrameLibrary(frames, task, instructions)
