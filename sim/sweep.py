"""Which conditions a sweep over latencies is made of, and where the episodes of each are kept.

Knows names and files, and in which order a machine is kept busy. Does not know policies or how an evaluation is run.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sim.latency import missing_trace
from sim.protocol import CONTROL_HZ, OFFICIAL, Protocol
from sim.suites import parse_numbers
from sim.timing import Timing


class Serving(NamedTuple):
    """What conditions of the same servers have in common. acceleration: "" for that of all servers."""

    decoding: str
    acceleration: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A named pair of how actions are decoded and how long that takes, e.g. on another machine.

    acceleration: of the server, where its actions are others, as with "fp8"; "" for that of all servers.
    """

    decoding: str
    latency: str
    acceleration: str = ""


@dataclass(frozen=True, slots=True)
class Condition:
    """Episodes that are told apart by world alone, and the file of their records."""

    serving: Serving
    timing: Timing
    protocol: Protocol
    suites: tuple[str, ...]
    initial_states: str
    file: Path


class Part(NamedTuple):
    """The episodes of one condition in one suite. server: number among those of the same serving, from 0."""

    condition: Condition
    suite: str
    server: int


@dataclass(frozen=True, slots=True)
class SweepConfig:
    """What to sweep.

    decodings, latencies: every one with every other: YAML files or names in configs/decoding, and milliseconds,
        "measured", "lognormal:P50,P95", "trace:FILE", "lock-step" or "real-time".
    rows: further pairs of the two by name, whose success makes the headline. A row whose trace has not been recorded
        yet is left out.
    drifts: speeds of the conveyor in mm/s; 0 is the static scene.
    suites, tasks, initial_states: as in an evaluation.
    moving_suites: those of the suites that have something to put on a conveyor in every task (see `sim.drift`).
    hold, max_age_ms, pipelined: as in `sim.timing.Timing`.
    control_hz: as in `sim.protocol.Protocol`. row_hz: that of the rows, which may differ by less than a tick of the
        others; 0 for the same.
    timed_suite: is run first in lock-step, alone and with the first decoding, to see how long that takes; "" for none.
    timed_states: the initial states of that run.
    runs: folder of the episodes' records, a file per condition.
    """

    runs: Path
    decodings: tuple[str, ...] = ("default",)
    latencies: tuple[str, ...] = ("0", "20", "50", "100", "150", "200", "300", "500")
    rows: dict[str, Row] = field(default_factory=dict)
    drifts: tuple[float, ...] = (0.0, 20.0)
    suites: tuple[str, ...] = ("libero_object", "libero_spatial")
    moving_suites: tuple[str, ...] = ("libero_object", "libero_spatial")
    tasks: str = "0-9"
    initial_states: str = "0-19"
    hold: float = 0.0
    max_age_ms: float = math.inf
    pipelined: bool = False
    control_hz: int = CONTROL_HZ
    row_hz: int = 0
    timed_suite: str = ""
    timed_states: str = "0-49"

    def __post_init__(self) -> None:
        if not (self.suites and self.drifts and (self.rows or (self.decodings and self.latencies))):
            raise ValueError("name at least one suite, one drift and one latency of a decoding, or one row")
        if any(self.drifts) and not set(self.suites) & set(self.moving_suites):
            raise ValueError(
                f"nothing drifts in {', '.join(self.suites)}; add one of the moving_suites "
                f"({', '.join(self.moving_suites)}), or let drifts be 0 only"
            )
        if self.timed_suite and not self.decodings:
            raise ValueError(f"{self.timed_suite} is timed with the first decoding; name one")
        for numbers in (self.tasks, self.initial_states, self.timed_states):
            parse_numbers(numbers)
        self.conditions()

    def conditions(self) -> list[Condition]:
        """All conditions that can be run, each once, those of rows first."""
        return [self.condition(row, drift) for row in (*self._named(), *self._others()) for drift in self.drifts]

    def untraced(self) -> dict[str, Path]:
        """Traces that have to be recorded first, by the name of the row that needs it."""
        missing = {name: missing_trace(row.latency) for name, row in self.rows.items()}
        return {name: path for name, path in missing.items() if path}

    def condition(self, row: Row, drift: float) -> Condition:
        """The condition of a decoding and a latency at one speed of the conveyor. Raises ValueError for no latency."""
        rate = self.row_hz if self.row_hz and row in self.rows.values() else self.control_hz
        protocol = Protocol(control_hz=rate, drift_mm_s=drift)
        file = self._file(row, f"drift {drift:g}" if drift else "static")
        serving = Serving(row.decoding, row.acceleration)
        return Condition(serving, self._timing(row.latency), protocol, self._suites(drift), self.initial_states, file)

    def timed(self) -> Condition:
        """The lock-step run of one suite, as published ones, that tells how long that takes."""
        serving, suites = Serving(self.decodings[0]), (self.timed_suite,)
        file = self._file(Row(serving.decoding, "lock-step"), f"{self.timed_suite} alone")
        return Condition(serving, Timing(), OFFICIAL, suites, self.timed_states, file)

    def servers(self, most: int) -> dict[Serving, int]:
        """How many servers each serving is to have: its share of the episodes, but at least one.

        most: servers at a time. Latencies share a server, not one each; but where most of them are of one serving, all
        simulators would end up waiting for its only server.
        """
        parts = Counter(condition.serving for condition in self.conditions() for _ in condition.suites)
        return {serving: max(1, round(most * count / parts.total())) for serving, count in parts.items()}

    def parts(self, most: int) -> list[Part]:
        """What to run, in order, rows first. most: servers at a time.

        Each suite begins with another one of the other latencies, so that decisions in short succession, which keep
        servers busy, and those far between, which keep simulators busy, go on side by side.
        """
        named, others = self._named(), self._others()
        servers, numbers = self.servers(most), dict[Row, int]()
        seen: Counter[Serving] = Counter()
        for row in (*named, *others):
            serving = Serving(row.decoding, row.acceleration)
            numbers[row] = seen[serving] % servers[serving]
            seen[serving] += 1
        places = [(drift, suite) for drift in self.drifts for suite in self._suites(drift)]
        ordered = [(row, *place) for place in places for row in named]
        for turn, place in enumerate(places):
            first = turn % max(1, len(others))
            ordered += [(row, *place) for row in (*others[first:], *others[:first])]
        return [Part(self.condition(row, drift), suite, numbers[row]) for row, drift, suite in ordered]

    def _named(self) -> list[Row]:
        """Rows that can be run, each once."""
        untraced = self.untraced()
        return list(dict.fromkeys(row for name, row in self.rows.items() if name not in untraced))

    def _others(self) -> list[Row]:
        """Every decoding with every latency, but for those that are rows."""
        rows = (Row(decoding, latency) for decoding in self.decodings for latency in self.latencies)
        return [row for row in dict.fromkeys(rows) if row not in self._named()]

    def _suites(self, drift: float) -> tuple[str, ...]:
        return tuple(suite for suite in self.suites if not drift or suite in self.moving_suites)

    def _timing(self, latency: str) -> Timing:
        if latency == "lock-step":
            return Timing()
        waiting = (self.hold, self.max_age_ms, self.pipelined)
        if latency == "real-time":
            return Timing("real-time", "measured", *waiting)
        return Timing("charged", latency, *waiting)

    def _file(self, row: Row, world: str) -> Path:
        kind, _, path = row.latency.partition(":")
        latency = f"trace {Path(path).stem}" if kind == "trace" else row.latency
        parts = [Path(row.decoding).stem, row.acceleration, latency, world]
        return self.runs / f"{re.sub(r'[^a-z0-9._]+', '-', ' '.join(filter(None, parts)).lower())}.jsonl"
