"""Frames and instructions to train a drafter on: where they come from, and a store in memory.

Actions are not among them: a drafter learns what its target does, and the target is asked. So any pictures of the
target's world serve, labelled or not. Knows the demonstration format and how to ask a stranger's code for episodes;
`docs/drafters.md` has adapters for LeRobot and RLDS data sets.
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
from policy.training.demonstrations import Demonstration, list_demonstrations
from policy.training.frames import is_held_out

FRAME_SHAPE = (IMAGE_SIDE, IMAGE_SIDE, 3)


@dataclass(frozen=True, slots=True)
class CameraEpisode:
    """What an adapter yields. name: tells episodes apart, and decides which are kept for validation.
    images: uint8 `[H, W, 3]` RGB each, as the robot's camera gives them to a policy (unrotated, uncropped).
    """

    name: str
    instruction: str
    images: Iterable[np.ndarray]


CameraEpisodes = Callable[[], Iterable[CameraEpisode]]
"""An adapter: called without arguments, gives the episodes of a data set one by one."""


@dataclass(frozen=True, slots=True)
class SizedEpisode:
    """frames: uint8 `[T, 224, 224, 3]`, as the network sees them but for normalisation."""

    name: str
    instruction: str
    frames: np.ndarray


def read_episodes(
    source: str, image_path: ImagePath, settings: PreprocessorSettings, processes: int
) -> Iterator[SizedEpisode]:
    """The episodes of a source: a folder of demonstrations with frames, or "module:function", an adapter.

    Raises ValueError for a source that is neither or has nothing.
    """
    if Path(source).is_dir():
        paths = list_demonstrations(source)
        if not paths:
            raise ValueError(f"{source} has no demonstrations; record some with scripts/collect_demos.py")
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            yield from pool.map(_read_demonstration, paths)
        return
    for episode in _adapter(source)():
        frames = [sized_frame(np.asarray(image), image_path, settings) for image in episode.images]
        if frames:
            yield SizedEpisode(episode.name, episode.instruction, np.stack(frames))


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
            f"frames are {source!r}; they must be a folder of demonstrations or 'module:function' that yields "
            f"CameraEpisode: {error}"
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
