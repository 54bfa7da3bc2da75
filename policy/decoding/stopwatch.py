"""Milliseconds per stage of one action."""

from __future__ import annotations

import time
from typing import Any

import torch

# A CUDA event, or seconds on this process's monotonic clock.
_Mark = Any


class Stopwatch:
    """Started when made; `lap` ends a stage.

    On a CUDA device a lap is an event in the stream, so that work counts where it was asked for and nobody waits for
    it: a host that waited at every lap could not queue the next stage meanwhile, and the step would take longer for
    being timed. Only `stage_ms` waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = self._mark()
        self._laps: list[tuple[str, _Mark]] = []

    def lap(self, stage: str) -> None:
        """Book the time since the last lap under `stage`."""
        self._laps.append((stage, self._mark()))

    @property
    def stage_ms(self) -> dict[str, float]:
        """Milliseconds by stage so far, in the order in which stages first ended; waits for the last one to end."""
        if self._laps and isinstance(last := self._laps[-1][1], torch.cuda.Event):
            last.synchronize()
        stage_ms: dict[str, float] = {}
        before = self._start
        for stage, mark in self._laps:
            stage_ms[stage] = stage_ms.get(stage, 0.0) + _milliseconds(before, mark)
            before = mark
        return stage_ms

    def _mark(self) -> _Mark:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def _milliseconds(start: _Mark, end: _Mark) -> float:
    return start.elapsed_time(end) if isinstance(end, torch.cuda.Event) else 1e3 * (end - start)
