"""What a sweep has found so far: its headline, and what is still to be done for it.

Knows sweeps and the files of their episodes. Does not know how they were run or how figures are shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sim.comparison import success_columns
from sim.records import EpisodeRecord, Outcome, newest_by_key, read_records
from sim.suites import parse_numbers
from sim.sweep import Condition, SweepConfig

SUITE_EPISODES = 500


class SweepResult:
    """The episodes of these weights that are in the sweep's files. weights: hash of the checkpoint."""

    def __init__(self, sweep: SweepConfig, weights: str) -> None:
        self._sweep = sweep
        timed = [sweep.timed()] if sweep.timed_suite else []
        self._found = {condition: _read(condition, weights) for condition in (*timed, *sweep.conditions())}

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
        wanted = sum(self._wanted(condition) for condition in conditions)
        held = [record for condition in conditions for record in self._found[condition]]
        errors = [record.error for record in held if record.outcome is Outcome.ERROR]
        if len(held) - len(errors) < wanted:
            told = f"; {len(errors)} errors, the last: {errors[-1]}" if errors else ""
            yield f"{what}: {(len(held) - len(errors)) or 'none'} of {wanted} episodes yet{told}"

    def _wanted(self, condition: Condition) -> int:
        """Number of episodes."""
        tasks, states = parse_numbers(self._sweep.tasks), parse_numbers(condition.initial_states)
        return len(condition.suites) * len(tasks) * len(states)

    def _suite_seconds(self) -> float | None:
        """Seconds that 500 episodes take, by those of the suite that was run alone once there are all of them."""
        if not self._sweep.timed_suite or any(self._lacking("", [self._sweep.timed()])):
            return None
        records = self._found[self._sweep.timed()]
        return round(SUITE_EPISODES * busy_seconds(records) / len(records), 1)


def busy_seconds(records: Sequence[EpisodeRecord]) -> float:
    """Seconds in which at least one of the episodes was under way; pauses between runs do not count."""
    ends = [datetime.fromisoformat(record.finished_at).timestamp() for record in records]
    spans = sorted((end - record.seconds, end) for record, end in zip(records, ends, strict=True))
    total, until = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _read(condition: Condition, weights: str) -> list[EpisodeRecord]:
    """Episodes under other conditions, such as an older trace, may be in the same file."""
    if not condition.file.is_file():
        return []
    wanted = (weights, condition.timing.conditions(), condition.protocol.deviations())
    return [
        record
        for record in newest_by_key(read_records(condition.file)).values()
        if (record.checkpoint_hash, record.timing, record.protocol_deviations) == wanted
        and record.suite in condition.suites
    ]
