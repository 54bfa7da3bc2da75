"""Milliseconds per stage of one action, on this process's monotonic clock."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Started when made; `lap` ends a stage. Waits for a CUDA device at each lap, so that work counts where it was
    asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self.stage_ms: dict[str, float] = {}
        self._device = device
        self._last = self._now()

    def lap(self, stage: str) -> None:
        """Book the time since the last lap under `stage`, in milliseconds."""
        now = self._now()
        self.stage_ms[stage] = self.stage_ms.get(stage, 0.0) + 1e3 * (now - self._last)
        self._last = now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
