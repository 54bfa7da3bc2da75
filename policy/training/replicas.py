"""One training run on several devices: each process has a copy of the weights and its own share of the episodes.

Started by torchrun, which tells every process its number through the environment; alone where there is none. Knows
processes and how they agree; nothing of what is trained.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, distributed

from policy.training.episode_choice import order_by_name

T = TypeVar("T")

# Longer than any of the first process's duties that the others wait for: saving, logging, compiling.
_PATIENCE = timedelta(minutes=5)


class Replicas:
    """What the processes of a run do together. rank: this one's number, from 0. count: how many there are."""

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if self.count > 1 and not distributed.is_initialized():
            # Gradients go from GPU to GPU; the few numbers that are agreed upon stay in the hosts' memory, so that
            # nobody waits for a GPU to read them.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            distributed.init_process_group(backend, timeout=_PATIENCE)

    @property
    def first(self) -> bool:
        """Whether this is the process that logs and saves."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device called so; "auto" is this process's own GPU, or the CPU where there is none."""
        if name != "auto":
            return torch.device(name)
        if not torch.cuda.is_available():
            return torch.device("cpu")
        torch.cuda.set_device(self._local_rank)
        return torch.device("cuda", self._local_rank)

    def owns(self, path: Path) -> bool:
        """Whether an episode is in this process's share: every process has others, chosen by name."""
        return order_by_name(path.name) % self.count == self.rank

    def from_first(self, value: T) -> T:
        """The first process's value; it is pickled, and never leaves the run."""
        if self.count == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, src=0, device=torch.device("cpu"))
        return held[0]

    def agree(self, *values: float) -> list[float]:
        """The first process's numbers, in every process; without any, all wait for the first one."""
        if self.count == 1:
            return list(values)
        told = torch.tensor(values or (0.0,), dtype=torch.float64)
        distributed.broadcast(told, src=0)
        return told.tolist()

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replaces every gradient by its mean over the processes."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.count
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def close(self) -> None:
        """Leaves the group."""
        if self.count > 1:
            distributed.destroy_process_group()
