"""All training frames, resident on the training device as uint8. Knows the demonstration format, not the model.

Episodes are decoded by a pool of processes and moved to the device when they are ready, so training starts with
the first episodes and takes in those that a collector adds while it runs.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from policy.openvla.images import decode_frame
from policy.training.demonstrations import Demonstration, list_demonstrations

FRAME_SHAPE = (224, 224, 3)
PRIVILEGED_SIZE = 10


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


def _room_for(frames: int, device: torch.device) -> torch.Tensor:
    """Memory for so many frames. Raises ValueError where there is not so much."""
    try:
        return torch.empty(frames, *FRAME_SHAPE, dtype=torch.uint8, device=device)
    except RuntimeError as error:  # of which the GPU's out-of-memory error is one
        gigabytes = frames * math.prod(FRAME_SHAPE) / 1e9
        raise ValueError(
            f"a capacity of {frames} frames takes {gigabytes:.1f} GB on {device}, more than is free; lower it"
        ) from error


def is_held_out(path: Path, every: int) -> bool:
    """A fixed share of the episodes, chosen by name, is kept for validation (0: none)."""
    return every > 0 and zlib.crc32(path.name.encode()) % every == 0


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
    held_out_every: one episode in so many goes to the validation store (`validation=True`), the others to training.
    owns: whether an episode is for this store at all, where several share a folder.
    count: frames that there are; taken_in: with those that newer ones have replaced since.
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
        self._owns = owns
        self._seen: set[Path] = set()
        self._pending: list[Future[DecodedEpisode]] = []
        self._pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))

    def refresh(self, wait: bool = False) -> int:
        """Takes in episodes that are decoded and queues new files; returns the number of new frames."""
        for directory in self.directories:
            for path in list_demonstrations(directory):
                if path not in self._seen:
                    self._seen.add(path)
                    if is_held_out(path, self.held_out_every) == self.validation and self._owns(path):
                        self._pending.append(self._pool.submit(decode_episode, path))
        ready = self._pending if wait else [future for future in self._pending if future.done()]
        added = sum(self._append(future.result()) for future in ready)
        self._pending = [] if wait else [future for future in self._pending if future not in set(ready)]
        return added

    def _append(self, episode: DecodedEpisode) -> int:
        """Stores an episode, the longest possible part of it, and returns its number of frames."""
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
