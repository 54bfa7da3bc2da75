"""Which conditions a sweep over latencies is made of, and where the episodes of each are kept.

Knows names and files. Does not know policies or how an evaluation is run.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from sim.protocol import CONTROL_HZ, Protocol
from sim.suites import parse_numbers
from sim.timing import Timing


@dataclass(frozen=True, slots=True)
class Row:
    """A named pair of how actions are decoded and how long that takes, e.g. on another machine."""

    decoding: str
    latency: str


@dataclass(frozen=True, slots=True)
class Condition:
    """Episodes to be run together, and the file of their records."""

    decoding: str
    latency: str
    timing: Timing
    protocol: Protocol
    file: Path


@dataclass(frozen=True, slots=True)
class SweepConfig:
    """What to sweep.

    decodings, latencies: every one with every other: YAML files or names in configs/decoding, and milliseconds,
        "measured", "lognormal:P50,P95", "trace:FILE", "lock-step" or "real-time".
    rows: further pairs of the two by name, whose success makes the headline.
    drifts: speeds of the conveyor in mm/s; 0 is the static scene.
    suites, tasks, initial_states: as in an evaluation.
    hold, max_age_ms, pipelined: as in `sim.timing.Timing`.
    control_hz: as in `sim.protocol.Protocol`.
    runs: folder of the episodes' records, a file per condition.
    """

    runs: Path
    decodings: tuple[str, ...] = ("autoregressive",)
    latencies: tuple[str, ...] = ("0", "20", "50", "100", "150", "200", "300", "500")
    rows: dict[str, Row] = field(default_factory=dict)
    drifts: tuple[float, ...] = (0.0, 20.0)
    suites: tuple[str, ...] = ("libero_object", "libero_spatial")
    tasks: str = "0-9"
    initial_states: str = "0-19"
    hold: float = 0.0
    max_age_ms: float = math.inf
    pipelined: bool = False
    control_hz: int = CONTROL_HZ

    def __post_init__(self) -> None:
        if not (self.suites and self.drifts and (self.rows or (self.decodings and self.latencies))):
            raise ValueError("name at least one suite, one drift and one latency of a decoding, or one row")
        parse_numbers(self.tasks), parse_numbers(self.initial_states)
        self.conditions()

    def conditions(self) -> list[Condition]:
        """All conditions, each once, those of one decoding together."""
        pairs = {(decoding, latency) for decoding in self.decodings for latency in self.latencies}
        pairs |= {(row.decoding, row.latency) for row in self.rows.values()}
        return [self.condition(Row(*pair), drift) for pair in sorted(pairs) for drift in self.drifts]

    def condition(self, row: Row, drift: float) -> Condition:
        """The condition of a decoding and a latency at one speed of the conveyor. Raises ValueError for no latency."""
        parts = [Path(row.decoding).stem, row.latency, f"drift {drift:g}" if drift else "static"]
        file = self.runs / f"{re.sub(r'[^a-z0-9.]+', '-', ' '.join(parts).lower())}.jsonl"
        protocol = Protocol(control_hz=self.control_hz, drift_mm_s=drift)
        return Condition(row.decoding, row.latency, self._timing(row.latency), protocol, file)

    def _timing(self, latency: str) -> Timing:
        if latency == "lock-step":
            return Timing()
        waiting = (self.hold, self.max_age_ms, self.pipelined)
        if latency == "real-time":
            return Timing("real-time", "measured", *waiting)
        return Timing("charged", latency, *waiting)
