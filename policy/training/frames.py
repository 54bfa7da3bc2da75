"""All training frames, resident on the training device as uint8. Knows the demonstration format, not the model.

Episodes are decoded by a pool of processes and moved to the device when they are ready, so training starts with
the first episodes and takes in those that a collector adds while it runs.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
import torch

from policy.openvla.images import decode_frame
from policy.training.demonstrations import Demonstration, list_demonstrations
from policy.training.episode_choice import is_held_out

FRAME_SHAPE = (224, 224, 3)
PRIVILEGED_SIZE = 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DecodedEpisode:
    """frames uint8 `[T, 224, 224, 3]`, actions float32 `[T, 7]`, privileged float32 `[T, 10]`."""

    path: Path
    instruction: str
    frames: np.ndarray
    actions: np.ndarray
    privileged: np.ndarray


def decode_episode(path: Path) -> DecodedEpisode:
    """Reads one demonstration; runs in a worker process."""
    demonstration = Demonstration.load(path)
    frames = np.stack([decode_frame(demonstration.frame_jpeg(i)) for i in range(len(demonstration))])
    return DecodedEpisode(path, demonstration.meta.instruction, frames, demonstration.actions, demonstration.privileged)


def _start_decoder() -> None:
    """Of a worker process: a signal to the whole group, as Ctrl-C sends it, is for the training process to answer,
    which needs its decoders until it ends; however that comes about, they end with it.
    """
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _room_for(frames: int, device: torch.device) -> torch.Tensor:
    """Memory for so many frames. Raises ValueError where there is not so much."""
    try:
        return torch.empty(frames, *FRAME_SHAPE, dtype=torch.uint8, device=device)
    except RuntimeError as error:  # of which the GPU's out-of-memory error is one
        gigabytes = frames * math.prod(FRAME_SHAPE) / 1e9
        raise ValueError(
            f"a capacity of {frames} frames takes {gigabytes:.1f} GB on {device}, more than is free; lower it"
        ) from error


def newest_last(paths: Iterable[Path]) -> list[Path]:
    """Files by age within each task, tasks evenly mixed: a full store, which keeps the last ones, has the newest share
    of every task's, however they were recorded. What vanishes meanwhile is left out.
    """
    ages: dict[Path, float] = {}
    for path in paths:
        with suppress(FileNotFoundError):
            ages[path] = path.stat().st_mtime
    tasks: dict[str, list[Path]] = {}
    for path in sorted(ages, key=lambda path: (ages[path], path.name)):
        tasks.setdefault(path.name.rpartition("_seed")[0], []).append(path)
    place = {path: (number + 1) / len(files) for files in tasks.values() for number, path in enumerate(files)}
    return sorted(place, key=lambda path: (place[path], ages[path], path.name))


@dataclass(frozen=True, slots=True)
class Batch:
    """frames uint8 `[B, 224, 224, 3]`, actions `[B, 7]`, privileged `[B, 10]`.

    task: int64 `[B]`, index into `FrameStore.instructions`.
    """

    frames: torch.Tensor
    task: torch.Tensor
    actions: torch.Tensor
    privileged: torch.Tensor


class FrameStore:
    """A store of frames with uniform sampling: grows to its capacity, from when on new frames replace the oldest.

    directories: folders of demonstrations, watched for new files at every `refresh`.
    capacity: frames for which memory is set aside (150,528 bytes each).
    held_out_every: one episode in so many, chosen by name, goes to the validation store (`validation=True`), the others
        to training; 0 for none.
    owns: whether an episode is for this store at all, where several share a folder.
    check: called with every episode before it is stored; may raise an error, which `refresh` passes on.
    count: frames that there are; taken_in: with those that newer ones have replaced since.
    unreadable: files that are no demonstrations, and why. Each is reported once and not tried again.

    Where a folder has more than the capacity to begin with, see `newest_last` for what is kept.
    """

    def __init__(
        self,
        directories: list[Path],
        capacity: int,
        device: torch.device,
        held_out_every: int = 0,
        validation: bool = False,
        processes: int = 2,
        owns: Callable[[Path], bool] = lambda path: True,
        check: Callable[[DecodedEpisode], None] = lambda episode: None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 frame, got {capacity}")
        self.directories, self.capacity, self.device = directories, capacity, device
        self.held_out_every, self.validation = held_out_every, validation
        self.instructions: list[str] = []
        self.count = self.taken_in = self.episodes = 0
        self._next = 0  # the row after the newest frame
        self._frames = _room_for(capacity, device)
        self._task = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._actions = torch.zeros(capacity, 7, device=device)
        self._privileged = torch.zeros(capacity, PRIVILEGED_SIZE, device=device)
        self._owns, self._check = owns, check
        self._seen: set[Path] = set()
        self._pending: list[tuple[Path, Future[DecodedEpisode]]] = []
        self.unreadable: dict[Path, str] = {}
        self._missing: set[str] = set()  # instructions that were reported to have no frames
        self._pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start_decoder)

    def refresh(self, wait: bool = False) -> int:
        """Takes in episodes that are decoded and queues new files; returns the number of new frames."""
        new = {path for directory in self.directories for path in list_demonstrations(directory)} - self._seen
        self._seen |= new
        for path in newest_last(filter(self._takes, new)):
            self._pending.append((path, self._pool.submit(decode_episode, path)))
        ready = [(path, future) for path, future in self._pending if wait or future.done()]
        taken = {path for path, _ in ready}
        self._pending = [(path, future) for path, future in self._pending if path not in taken]
        added = sum(self._take_in(path, future) for path, future in ready)
        if added and self.taken_in > self.count:
            self._report_missing()
        return added

    def _takes(self, path: Path) -> bool:
        held_out = self.held_out_every > 0 and is_held_out(path.name, self.held_out_every)
        return held_out == self.validation and self._owns(path)

    def _take_in(self, path: Path, future: Future[DecodedEpisode]) -> int:
        """Stores a file's frames and returns their number; of what is no demonstration there are none."""
        error = future.exception()
        if isinstance(error, BrokenExecutor):
            raise error  # says nothing about the file
        if error is None:
            return self._append(future.result())
        self.unreadable[path] = str(error)
        _log.warning("%s is left out, it cannot be read: %s", path, error)
        return 0

    def _report_missing(self) -> None:
        """Warns of tasks that had frames and have none any more."""
        frames = torch.bincount(self._task[: self.count], minlength=len(self.instructions)).tolist()
        missing = {text for text, count in zip(self.instructions, frames, strict=True) if not count} - self._missing
        if missing:
            self._missing |= missing
            _log.warning(
                "no frames are left of %s: newer ones have replaced them; raise the capacity, which is %d frames",
                ", ".join(map(repr, sorted(missing))),
                self.capacity,
            )

    def _append(self, episode: DecodedEpisode) -> int:
        """Stores an episode, the longest possible part of it, and returns its number of frames."""
        self._check(episode)
        if episode.instruction not in self.instructions:
            self.instructions.append(episode.instruction)
        steps = min(len(episode.actions), self.capacity)
        rows = (self._next + torch.arange(steps, device=self.device)) % self.capacity
        self._frames[rows] = torch.from_numpy(episode.frames[:steps]).to(self.device)
        self._task[rows] = self.instructions.index(episode.instruction)
        self._actions[rows] = torch.from_numpy(episode.actions[:steps]).to(self.device)
        self._privileged[rows] = torch.from_numpy(episode.privileged[:steps]).to(self.device)
        self._next = (self._next + steps) % self.capacity
        self.count = min(self.count + steps, self.capacity)
        self.taken_in += steps
        self.episodes += 1
        return steps

    @property
    def actions(self) -> torch.Tensor:
        """All actions so far, `[N, 7]`."""
        return self._actions[: self.count]

    @property
    def privileged(self) -> torch.Tensor:
        """All privileged readings so far, `[N, 10]`."""
        return self._privileged[: self.count]

    def rows(self, index: torch.Tensor) -> Batch:
        return Batch(self._frames[index], self._task[index], self._actions[index], self._privileged[index])

    def sample(self, size: int) -> Batch:
        """`size` frames drawn uniformly with replacement."""
        if self.count == 0:
            raise ValueError(
                f"no demonstrations in {[str(d) for d in self.directories]}; run scripts/collect_demos.py first"
            )
        return self.rows(torch.randint(0, self.count, (size,), device=self.device))

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
