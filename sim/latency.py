"""How long decisions are said to take: as measured, a constant, drawn from a distribution, or replayed from a trace.

Knows milliseconds and files of them. Does not know control ticks: what a millisecond costs is the clock's business.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from zlib import crc32

import numpy as np

from sim.newest_records import newest_by_key
from sim.records import EpisodeRecord, read_records

_NORMAL_95 = 1.6448536269514722  # 95 % quantile of the standard normal distribution


@dataclass(frozen=True, slots=True)
class Measured:
    """What the policy takes here and now; differs from run to run."""

    def describe(self) -> str:
        return "measured"

    def of_episode(self, suite: str, task: int, init_state: int, seed: int) -> Iterator[float] | None:
        """Nothing is given in advance."""
        return None


@dataclass(frozen=True, slots=True)
class Constant:
    """The same for every decision."""

    milliseconds: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.milliseconds) and self.milliseconds >= 0):
            raise ValueError(f"a latency is a finite number of milliseconds from 0 up, got {self.milliseconds}")

    def describe(self) -> str:
        return f"{self.milliseconds:g} ms"

    def of_episode(self, suite: str, task: int, init_state: int, seed: int) -> Iterator[float]:
        """Milliseconds of one decision after the other, without end."""
        while True:
            yield self.milliseconds


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Independent draws from the log-normal distribution with these 50 % and 95 % quantiles."""

    p50_ms: float
    p95_ms: float

    def __post_init__(self) -> None:
        if not 0 < self.p50_ms <= self.p95_ms < math.inf:
            raise ValueError(f"quantiles must be 0 < p50 <= p95, got {self.p50_ms} and {self.p95_ms} ms")

    def describe(self) -> str:
        return f"log-normal p50 {self.p50_ms:g} ms p95 {self.p95_ms:g} ms"

    def of_episode(self, suite: str, task: int, init_state: int, seed: int) -> Iterator[float]:
        """Milliseconds of one decision after the other, without end; the same for the same episode and seed."""
        random = np.random.default_rng(_episode_seed(suite, task, init_state, seed))
        scale = math.log(self.p95_ms / self.p50_ms) / _NORMAL_95
        while True:
            yield self.p50_ms * math.exp(scale * random.standard_normal())


@dataclass(frozen=True, slots=True)
class Trace:
    """Replayed from a file, in the recorded order.

    A JSON file holds one long recording (`LatencyTrace`), which every episode enters at a place that follows from the
    episode and the seed, and starts again at its end. A JSONL file of episode records gives each episode the
    latencies it had itself.
    """

    path: Path
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise ValueError(f"there is no trace {self.path}; record one with scripts/record_latency.py")
        content = self.path.read_bytes()
        object.__setattr__(self, "digest", hashlib.sha256(content).hexdigest()[:12])
        if self._of_records:
            if not any(record.decision_ms for record in read_records(self.path)):
                raise ValueError(f"{self.path} holds no episode with the latencies of its decisions; run it again")
        else:
            LatencyTrace.load(self.path)

    @property
    def _of_records(self) -> bool:
        return self.path.suffix == ".jsonl"

    def describe(self) -> str:
        return f"trace {self.path.stem} {self.digest}"

    def of_episode(self, suite: str, task: int, init_state: int, seed: int) -> Iterator[float]:
        """Milliseconds of one decision after the other, without end. Raises ValueError for an episode not recorded."""
        if self._of_records:
            found = _recorded_episodes(self.path, self.digest).get((suite, task, init_state))
            if found is None:
                raise ValueError(f"{self.path} has no latencies of {suite} task {task} initial state {init_state}")
            return _without_end(found, 0)
        milliseconds = LatencyTrace.load(self.path).milliseconds
        return _without_end(milliseconds, _episode_seed(suite, task, init_state, seed) % len(milliseconds))


Latencies = Measured | Constant | LogNormal | Trace


def parse_latencies(text: str) -> Latencies:
    """From "measured", a number of milliseconds, "lognormal:P50,P95" or "trace:FILE". Raises ValueError."""
    kind, _, rest = text.partition(":")
    if text == "measured":
        return Measured()
    if kind == "trace" and rest:
        return Trace(Path(rest))
    try:
        if kind == "lognormal":
            p50, p95 = map(float, rest.split(","))
            return LogNormal(p50, p95)
        milliseconds = float(text)
    except ValueError as error:
        raise ValueError(
            f"latency {text!r} is none of: measured, milliseconds such as 150, lognormal:P50,P95, trace:FILE ({error})"
        ) from None
    return Constant(milliseconds)


def missing_trace(text: str) -> Path | None:
    """The file of "trace:FILE" where it is not there, and None for all else."""
    kind, _, rest = text.partition(":")
    return Path(rest) if kind == "trace" and rest and not Path(rest).is_file() else None


@dataclass(frozen=True, slots=True)
class LatencyTrace:
    """A recording of how long one decision after the other took, from observation sent to action there.

    milliseconds: in order. policy, decoder, device, dtype: of the PolicySpec. note: what else was particular.
    """

    milliseconds: tuple[float, ...]
    policy: str
    decoder: str
    device: str
    dtype: str
    note: str = ""

    def __post_init__(self) -> None:
        if not self.milliseconds:
            raise ValueError("a latency trace needs at least one decision")
        if not all(math.isfinite(value) and value >= 0 for value in self.milliseconds):
            raise ValueError(f"latencies must be finite and not negative, got {min(self.milliseconds)} as the least")

    def save(self, path: Path) -> None:
        """Writes the file as JSON, microseconds kept."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values["milliseconds"] = [round(value, 3) for value in self.milliseconds]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values) + "\n")

    @staticmethod
    @cache
    def load(path: Path) -> LatencyTrace:
        """Raises ValueError for a file of something else."""
        try:
            values = json.loads(path.read_text())
            return LatencyTrace(**values | {"milliseconds": tuple(map(float, values["milliseconds"]))})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no latency trace: {error}") from error


def trace_of(records: Sequence[EpisodeRecord], note: str = "") -> LatencyTrace:
    """The latencies of all decisions of one run, episode after episode.

    Raises ValueError without any, for charged latencies, which nobody measured, and for different runs in one.
    """
    told = [record for record in newest_by_key(records).values() if record.decision_ms]
    if not told:
        raise ValueError("no episode has the latencies of its decisions")
    kinds = {(r.policy_id, r.decoder, r.device, r.dtype, r.clock, *r.timing) for r in told}
    if len(kinds) > 1:
        raise ValueError(f"these are episodes of {len(kinds)} runs, {sorted(kinds)}; give those of one")
    first = told[0]
    if first.clock == "charged":
        raise ValueError("these latencies were charged; give a run on the lock-step or the real-time clock")
    milliseconds = tuple(value for record in told for value in record.decision_ms)
    return LatencyTrace(milliseconds, first.policy_id, first.decoder, first.device, first.dtype, note)


@cache
def _recorded_episodes(path: Path, digest: str) -> dict[tuple[str, int, int], tuple[float, ...]]:
    """Latencies by episode. Raises ValueError where runs under different conditions are mixed."""
    records = [record for record in newest_by_key(read_records(path)).values() if record.decision_ms]
    found: dict[tuple[str, int, int], EpisodeRecord] = {}
    for record in records:
        place = (record.suite, record.task, record.init_state)
        if place in found:
            raise ValueError(f"{path} has several runs of {place}; give a file of one run")
        found[place] = record
    return {place: record.decision_ms for place, record in found.items()}


def _without_end(values: tuple[float, ...], first: int) -> Iterator[float]:
    position = first
    while True:
        yield values[position % len(values)]
        position += 1


def _episode_seed(suite: str, task: int, init_state: int, seed: int) -> int:
    """The same number for the same episode on every machine and in every process."""
    return crc32(f"{seed} {suite} {task} {init_state}".encode())
