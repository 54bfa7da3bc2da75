"""Several decoders on the same episodes, each against the plain one: success, latency, passes and deviation, by suite.

Knows records of episodes. Knows nothing of how they were run, of configurations or of files.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from policy.types import ACTION_NAMES
from sim.decoding_statistics import DecodingStatistics
from sim.records import EpisodeRecord, Latency, Outcome
from sim.statistics import SuccessRate, compare_paired

ALL_SUITES = "all"
_UNITS = ("mm", "mm", "mm", "mrad", "mrad", "mrad", "bins")


def comparison_rows(
    records: Mapping[str, Sequence[EpisodeRecord]], baseline: str, bin_sizes: np.ndarray
) -> list[dict[str, Any]]:
    """One row per decoder and suite, and one for all suites together where there are several.

    records: by decoder. baseline: the decoder that the others are paired with on the episodes both have.
    bin_sizes: float64 `[7]`, commanded motion per bin in mm (0-2) and mrad (3-5); the gripper's entry is not used.
    """
    rows = []
    for name, own in records.items():
        suites = list(dict.fromkeys(record.suite for record in own))
        for suite in [*suites, *([ALL_SUITES] if len(suites) > 1 else [])]:
            chosen = [record for record in own if suite in (record.suite, ALL_SUITES)]
            paired = [record for record in records.get(baseline, ()) if suite in (record.suite, ALL_SUITES)]
            row = {"decoding": name, "suite": suite} | success_columns(chosen) | paired_columns(chosen, paired)
            rows.append(row | _latency(chosen) | _decoding(chosen, bin_sizes))
    return rows


def _valid(records: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    return [record for record in records if record.outcome is not Outcome.ERROR]


def _solved(records: Sequence[EpisodeRecord]) -> dict[Hashable, bool]:
    """Success by episode."""
    return {
        (record.suite, record.task, record.init_state): record.outcome is Outcome.SUCCESS for record in _valid(records)
    }


def success_columns(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Success with Wilson's 95 % interval and mean steps, errors left out; None for numbers that do not exist."""
    valid = _valid(records)
    rate = SuccessRate(sum(record.outcome is Outcome.SUCCESS for record in valid), len(valid))
    low, high = rate.interval()
    return {
        "episodes": rate.episodes,
        "successes": rate.successes,
        "errors": len(records) - len(valid),
        "rate": rate.rate if valid else None,
        "wilson95_low": low,
        "wilson95_high": high,
        "mean_steps": float(np.mean([record.steps for record in valid])) if valid else None,
    }


def paired_columns(records: Sequence[EpisodeRecord], baseline: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """McNemar's comparison with the baseline; points are percentage points of the success rate, with 95 % bounds."""
    own, theirs = _solved(records), _solved(baseline)
    if not own.keys() & theirs.keys():
        return {"paired_episodes": 0}
    paired = compare_paired(own, theirs)
    low, high = paired.interval()
    return {
        "paired_episodes": paired.episodes,
        "solved_only_here": paired.only_first,
        "solved_only_by_baseline": paired.only_second,
        "points": paired.points,
        "points95_low": low,
        "points95_high": high,
        "mcnemar_p": paired.p_value,
    }


def _latency(records: Sequence[EpisodeRecord]) -> dict[str, float | None]:
    """Milliseconds from handing over an observation to having the action, of all decisions; None unless every episode
    tells: archives leave them out, and the rest would stand for all.
    """
    timed = [record.decision_ms for record in _valid(records)]
    found = Latency.of([ms for episode in timed for ms in episode]) if timed and all(timed) else None
    return {
        f"latency_{name}": round(getattr(found, name), 2) if found else None for name in ("p50_ms", "p95_ms", "p99_ms")
    }


def _decoding(records: Sequence[EpisodeRecord], bin_sizes: np.ndarray) -> dict[str, Any]:
    """Passes of all actions, and of those of solved and of failed episodes; the rest of all."""
    parts = {
        "": _valid(records),
        "_of_solved": [record for record in records if record.outcome is Outcome.SUCCESS],
        "_of_failed": [record for record in records if record.outcome is Outcome.FAILURE],
    }
    row: dict[str, Any] = {}
    for suffix, part in parts.items():
        told = [record.decoding for record in part if record.decoding]
        total = DecodingStatistics.total(told) if told else None
        row[f"passes{suffix}"] = total.mean_passes if total else None
        if total and not suffix:
            row |= total.row() | _in_units(total, bin_sizes)
    return row


def _in_units(total: DecodingStatistics, bin_sizes: np.ndarray) -> dict[str, Any]:
    """Executed deviations from the target's choices, by dimension and its unit."""
    sizes = np.append(bin_sizes[:-1], 1.0)
    summed = {
        "mean": np.array(total.absolute_deviation) / total.actions,
        "signed": np.array(total.signed_deviation) / total.actions,
        "max": np.array(total.largest_deviation),
    }
    names = [f"{name}_{unit}" for name, unit in zip(ACTION_NAMES, _UNITS, strict=True)]
    return {
        f"deviation_{kind}": dict(zip(names, (round(float(value), 4) for value in values * sizes), strict=True))
        for kind, values in summed.items()
    }
