"""Success rates, speed and errors of an evaluation, by task and by suite, as numbers and as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from sim.decoding_statistics import DecodingStatistics
from sim.records import EpisodeRecord, Outcome
from sim.statistics import SuccessRate


@dataclass(frozen=True, slots=True)
class Summary:
    """Some episodes of one suite, of one task or (`task` is None) of all.

    rate: without errors. steps, p50_ms, p95_ms, target_passes: means over the valid episodes, NaN without any; the
    latencies are means of each episode's own percentiles. decoding: of all actions, None where none was decoded.
    """

    suite: str
    task: int | None
    instruction: str
    rate: SuccessRate
    errors: int
    steps: float
    p50_ms: float
    p95_ms: float
    target_passes: float
    decoding: DecodingStatistics | None

    @classmethod
    def of(cls, records: list[EpisodeRecord], task: int | None) -> Summary:
        """Summary of at least one record, all of the same suite."""
        valid = [record for record in records if record.outcome is not Outcome.ERROR]
        solved = sum(record.outcome is Outcome.SUCCESS for record in valid)
        latencies = [record.latency for record in valid if record.latency]
        decoded = [record.decoding for record in valid if record.decoding]
        return cls(
            suite=records[0].suite,
            task=task,
            instruction=records[0].instruction if task is not None else "",
            rate=SuccessRate(solved, len(valid)),
            errors=len(records) - len(valid),
            steps=_mean(record.steps for record in valid),
            p50_ms=_mean(latency.p50_ms for latency in latencies),
            p95_ms=_mean(latency.p95_ms for latency in latencies),
            target_passes=_mean(record.target_passes for record in valid),
            decoding=DecodingStatistics.total(decoded) if decoded else None,
        )

    def row(self) -> dict[str, Any]:
        """As one flat row for `policy.results.write_result`, numbers that do not exist as None."""
        low, high = self.rate.interval()
        numbers = {
            "rate": self.rate.rate,
            "wilson95_low": low,
            "wilson95_high": high,
            "mean_steps": self.steps,
            "latency_p50_ms": self.p50_ms,
            "latency_p95_ms": self.p95_ms,
            "target_passes_per_action": self.target_passes,
        }
        counts = {"successes": self.rate.successes, "episodes": self.rate.episodes, "errors": self.errors}
        named = {"suite": self.suite, "task": self.task, "instruction": self.instruction}
        measured = {name: None if np.isnan(value) else value for name, value in numbers.items()}
        return named | counts | measured | (self.decoding.row() if self.decoding else {})


def summarise(records: Iterable[EpisodeRecord]) -> list[Summary]:
    """One Summary per task and, after its tasks, one per suite, in the order the suites first appear."""
    by_suite: dict[str, dict[int, list[EpisodeRecord]]] = {}
    for record in records:
        by_suite.setdefault(record.suite, {}).setdefault(record.task, []).append(record)
    summaries = []
    for tasks in by_suite.values():
        summaries += [Summary.of(tasks[task], task) for task in sorted(tasks)]
        summaries.append(Summary.of([record for group in tasks.values() for record in group], None))
    return summaries


def headline(summaries: Iterable[Summary]) -> dict[str, float | int | None]:
    """The numbers to quote: each suite's success rate (None without a valid episode), their mean, valid episodes per
    suite, errors.

    episodes_per_suite is the smallest count where suites differ. There is no mean of one suite, nor with one missing.
    """
    suites = [summary for summary in summaries if summary.task is None]
    rates = {s.suite: s.rate.rate if s.rate.episodes else None for s in suites}
    known = [rate for rate in rates.values() if rate is not None]
    if len(known) == len(rates) > 1:
        rates["mean"] = sum(known) / len(known)
    counts = {"episodes_per_suite": min(s.rate.episodes for s in suites), "errors": sum(s.errors for s in suites)}
    return rates | counts


def conditions(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Under what the episodes of one evaluation were run, to stand in each row of its result: all that there was, where
    it was not the same for all. An error of a policy that never came up tells neither device nor number format.
    """

    def told(name: str) -> str:
        return "; ".join(sorted({value for record in records if (value := getattr(record, name))}))

    def listed(values: Iterable[tuple[str, ...]]) -> list[str]:
        return list(dict.fromkeys(text for value in values for text in value))

    return {
        "policy": told("policy_id"),
        "privileged": any(record.privileged for record in records),
        "checkpoint_hash": told("checkpoint_hash"),
        "unnorm_key": told("unnorm_key"),
        "decoder": told("decoder"),
        "decoding_digest": told("decoding_digest"),
        "device": told("device"),
        "dtype": told("dtype"),
        "image_path": told("image_path"),
        "clock": told("clock"),
        "timing": listed(record.timing for record in records),
        "renderer": told("renderer"),
        "hardware": told("machine"),
        "protocol_deviations": listed(record.deviations for record in records),
    }


def summary_table(summaries: Iterable[Summary], title: str) -> Table:
    """For the terminal."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("suite, task", no_wrap=True)
    for name in ("solved", "95 % interval", "errors", "steps", "p50 ms", "p95 ms", "passes"):
        table.add_column(name, justify="right", no_wrap=True)
    for summary in summaries:
        low, high = summary.rate.interval()
        counts = (
            f"{summary.rate.successes}/{summary.rate.episodes}",
            f"{100 * low:.1f}-{100 * high:.1f} %",
            str(summary.errors),
        )
        measured = [f"{value:.1f}" for value in (summary.steps, summary.p50_ms, summary.p95_ms)]
        measured.append(f"{summary.target_passes:.2f}")
        name = f"{summary.suite} {'all' if summary.task is None else summary.task}"
        last = summary.task is None
        table.add_row(name, *counts, *measured, style="bold" if last else None, end_section=last)
    return table


def _mean(values: Iterable[float]) -> float:
    collected = list(values)
    return float(np.mean(collected)) if collected else float("nan")
