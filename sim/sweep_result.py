"""What a sweep has found so far: its headline, and what is still to be done for it.

Knows sweeps and the files of their episodes. Does not know how they were run or how figures are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import product
from typing import Any

from policy.types import PolicySpec
from sim.comparison import success_columns
from sim.newest_records import newest_by_key
from sim.records import EpisodeRecord, Outcome, read_records
from sim.suites import parse_numbers
from sim.sweep import Condition, Serving, SweepConfig

SUITE_EPISODES = 500
# A longer time without any episode is one between two runs; a shorter one is spent on getting the next episode ready.
PAUSE_S = 60.0


class SweepResult:
    """The sweep's episodes that are in its files. spec_of: what is served now, whose episodes alone count."""

    def __init__(self, sweep: SweepConfig, spec_of: Callable[[Serving], PolicySpec]) -> None:
        self._sweep = sweep
        timed = [sweep.timed()] if sweep.timed_suite else []
        conditions = (*timed, *sweep.conditions())
        self._found = {condition: self._read(condition, spec_of(condition.serving)) for condition in conditions}

    def records(self) -> list[EpisodeRecord]:
        """The newest one of every episode."""
        return [record for own in self._found.values() for record in own]

    def headline(self) -> dict[str, Any]:
        """Success by row, over all suites, in the static and in the moving worlds, and `suite_seconds`.

        None for what has no episodes yet.
        """
        rates: dict[str, dict[str, float | None]] = {"static": {}, "moving": {}}
        untraced = self._sweep.untraced()
        for name, row in self._sweep.rows.items():
            for drift in self._sweep.drifts:
                own = [] if name in untraced else self._found[self._sweep.condition(row, drift)]
                rates["moving" if drift else "static"][name] = success_columns(own)["rate"]
        return rates | {"suite_seconds": self._suite_seconds()}

    def missing(self) -> Iterator[str]:
        """What is still to be done, in words, a line each."""
        untraced = self._sweep.untraced()
        named: set[Condition] = set()
        for name, row in self._sweep.rows.items():
            if name in untraced:
                yield f"row {name} has no trace {untraced[name]} yet; record it with scripts/record_latency.py"
                continue
            for drift in self._sweep.drifts:
                condition = self._sweep.condition(row, drift)
                named.add(condition)
                yield from self._lacking(f"row {name}, {'moving' if drift else 'static'}", [condition])
        others = [condition for condition in self._sweep.conditions() if condition not in named]
        yield from self._lacking("latencies that are no rows", others)
        if self._sweep.timed_suite:
            yield from self._lacking(f"{self._sweep.timed_suite} alone, for suite_seconds", [self._sweep.timed()])

    def _lacking(self, what: str, conditions: Sequence[Condition]) -> Iterator[str]:
        wanted = sum(len(self._wanted(condition)) for condition in conditions)
        held = [record for condition in conditions for record in self._found[condition]]
        errors = [record.error for record in held if record.outcome is Outcome.ERROR]
        if len(held) - len(errors) < wanted:
            told = f"; {len(errors)} errors, the last: {errors[-1]}" if errors else ""
            yield f"{what}: {(len(held) - len(errors)) or 'none'} of {wanted} episodes yet{told}"

    def _read(self, condition: Condition, spec: PolicySpec) -> list[EpisodeRecord]:
        """Others may be in the same file: of an older trace, of weights or settings that have changed since."""
        if not condition.file.is_file():
            return []
        time = (condition.timing.clock, condition.timing.conditions(), condition.protocol.deviations())
        wanted = self._wanted(condition)
        own = [
            record
            for record in read_records(condition.file)
            if record.is_of(spec)
            and (record.clock, record.timing, record.protocol_deviations) == time
            and (record.suite, record.task, record.init_state) in wanted
        ]
        return list(newest_by_key(own).values())

    def _wanted(self, condition: Condition) -> set[tuple[str, int, int]]:
        """Suite, task and initial state of every episode."""
        tasks, states = parse_numbers(self._sweep.tasks), parse_numbers(condition.initial_states)
        return set(product(condition.suites, tasks, states))

    def _suite_seconds(self) -> float | None:
        """Seconds that 500 episodes take, by those of the suite that was run alone once there are all of them."""
        if not self._sweep.timed_suite or any(self._lacking("", [self._sweep.timed()])):
            return None
        records = self._found[self._sweep.timed()]
        return round(SUITE_EPISODES * busy_seconds(records) / len(records), 1)


def busy_seconds(records: Sequence[EpisodeRecord]) -> float:
    """Seconds from the first episode's start to the last one's end, pauses between two runs left out."""
    ends = [datetime.fromisoformat(record.finished_at).timestamp() for record in records]
    spans = sorted((end - record.seconds, end) for record, end in zip(records, ends, strict=True))
    total, until = 0.0, float("-inf")
    for start, end in spans:
        begun = until if start - until <= PAUSE_S else start
        total += max(0.0, end - begun)
        until = max(until, end)
    return total
