"""How the actions of an episode were decoded, in sums that add up over episodes.

Knows decoding traces. Does not know decoders, files or the units of a bin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from policy.types import ACTION_NAMES, DecodeTrace

_DIMENSIONS = len(ACTION_NAMES)
_ZEROS = (0,) * _DIMENSIONS


@dataclass(frozen=True, slots=True)
class DecodingStatistics:
    """Sums over actions; everything by dimension has one entry for each of the 7.

    passes: number of actions that took 1, 2, ... 7 target passes. gained: tokens gained by the first, second, ...
    seventh pass. drafted: actions whose token of this dimension was accepted from a draft. drafters: accepted tokens by
    drafter. absolute_deviation, signed_deviation, largest_deviation: emitted minus the target's own choice in bins,
    summed up or (the last) the largest. forced: actions by the reason why a tolerant rule decoded them exactly.
    """

    passes: tuple[int, ...] = _ZEROS
    gained: tuple[int, ...] = _ZEROS
    drafted: tuple[int, ...] = _ZEROS
    absolute_deviation: tuple[int, ...] = _ZEROS
    signed_deviation: tuple[int, ...] = _ZEROS
    largest_deviation: tuple[int, ...] = _ZEROS
    drafters: dict[str, int] = field(default_factory=dict)
    forced: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, traces: Sequence[DecodeTrace]) -> DecodingStatistics | None:
        """Of an episode; None for a policy that does not decode tokens."""
        told = [trace for trace in traces if trace.accepted_per_pass]
        if not told:
            return None
        deviations = np.array([trace.deviation_bins for trace in told])  # [actions, 7]
        gained = np.array([trace.accepted_per_pass + _ZEROS[len(trace.accepted_per_pass) :] for trace in told])
        return cls(
            passes=_whole(np.bincount([trace.target_passes - 1 for trace in told], minlength=_DIMENSIONS)),
            gained=_whole(gained.sum(axis=0)),
            drafted=_whole(np.array([[bool(source) for source in trace.sources] for trace in told]).sum(axis=0)),
            absolute_deviation=_whole(np.abs(deviations).sum(axis=0)),
            signed_deviation=_whole(deviations.sum(axis=0)),
            largest_deviation=_whole(np.abs(deviations).max(axis=0)),
            drafters=dict(Counter(source for trace in told for source in trace.sources if source)),
            forced=dict(Counter(reason for trace in told for reason in trace.forced)),
        )

    @classmethod
    def total(cls, parts: Iterable[DecodingStatistics]) -> DecodingStatistics:
        """Of several episodes together."""
        held = list(parts)
        total: dict[str, Any] = {}
        for entry in fields(cls):
            values = [getattr(part, entry.name) for part in held]
            if entry.name in ("drafters", "forced"):
                total[entry.name] = dict(sum((Counter(value) for value in values), Counter()))
            elif values:
                rows = np.array(values)
                total[entry.name] = _whole(rows.max(0) if entry.name == "largest_deviation" else rows.sum(0))
        return cls(**total)

    @property
    def actions(self) -> int:
        return sum(self.passes)

    @property
    def mean_passes(self) -> float:
        """Target passes per action."""
        return sum(count * number for number, count in enumerate(self.passes, start=1)) / self.actions

    def row(self) -> dict[str, Any]:
        """Means and shares for a results table: flat, and empty of NaN because there is at least one action."""
        passes = np.array(self.passes)
        reached = passes[::-1].cumsum()[::-1]  # actions that took at least so many passes
        accepted = max(sum(self.drafters.values()), 1)
        return {
            "passes_share": _shares(passes, self.actions),
            "tokens_per_pass": [
                round(gain / count, 4) if count else None for gain, count in zip(self.gained, reached, strict=True)
            ],
            "accepted_by_dimension": _shares(self.drafted, self.actions),
            "drafter_share": {name: round(count / accepted, 4) for name, count in sorted(self.drafters.items())},
            "deviation_mean_bins": _shares(self.absolute_deviation, self.actions),
            "deviation_signed_bins": _shares(self.signed_deviation, self.actions),
            "deviation_max_bins": list(self.largest_deviation),
            "forced_share": {name: round(count / self.actions, 4) for name, count in sorted(self.forced.items())},
        }


def _shares(counts: Sequence[int] | np.ndarray, whole: int) -> list[float]:
    return [round(float(count) / whole, 4) for count in counts]


def _whole(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
