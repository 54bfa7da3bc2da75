"""What tolerant decoding would have executed, next to what plain decoding chooses, on the same logged frames.

Knows how to put decoders side by side and how to sum up their differences in physical units. Knows nothing of files,
and nothing of what a deviation does to a robot: the frames are given, so no error feeds back into what is seen next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from policy.decoding.config import ActionDecoder
from policy.decoding.physical import DIMENSION_UNITS, ActionUnits
from policy.decoding.replay import LoggedEpisode, replay
from policy.decoding.stopwatch import Stopwatch
from policy.openvla.config import ACTION_BINS, ACTION_DIMENSIONS
from policy.types import ACTION_NAMES, DecodeTrace

PERCENTILE = 99


@dataclass(slots=True)
class ShadowRecord:
    """One decoder's actions.

    deviations: by episode, one float64 `[7]` per action, in the units of `ActionUnits.deviations`.
    identical, traces: one per action of all episodes; whether all seven tokens were those of the reference, and how
    they came about.
    """

    name: str
    deviations: dict[str, list[np.ndarray]] = field(default_factory=dict)
    identical: list[bool] = field(default_factory=list)
    traces: list[DecodeTrace] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """One line of a result.

        `passes`: mean passes of the target per action, and `passes_share`, the share of actions by number of passes.
        `tokens_per_pass`: tokens that a pass gains, the target's own included. `identical_share`: actions with the
        reference's tokens. `drafted_share`: by dimension, coordinates that a draft provided. `forced_share`: actions by
        why they were decoded exactly. And for each dimension with its unit, of this decoder's action minus the
        reference's: `max`, `p99` and `size` (mean) of the absolute value, the signed `mean`, and `drift`, the largest
        absolute sum since the start of an episode.

        Raises ValueError where nothing was played.
        """
        actions = len(self.traces)
        if not actions:
            raise ValueError(f"{self.name} was shown no frames; give episodes that have some")
        passes = [trace.target_passes for trace in self.traces]
        forced = Counter(reason for trace in self.traces for reason in trace.forced)
        drafted = np.array([[source != "" for source in trace.sources] for trace in self.traces if trace.sources])
        shares = drafted.mean(axis=0) if len(drafted) else np.zeros(ACTION_DIMENSIONS)
        return {
            "decoding": self.name,
            "episodes": len(self.deviations),
            "actions": actions,
            "passes": sum(passes) / actions,
            "passes_share": {str(count): passes.count(count) / actions for count in sorted(set(passes))},
            "tokens_per_pass": ACTION_DIMENSIONS * actions / sum(passes),
            "identical_share": sum(self.identical) / actions,
            "drafted_share": dict(zip(ACTION_NAMES, map(float, shares), strict=True)),
            "forced_share": {reason: count / actions for reason, count in sorted(forced.items())},
            **self._deviation_columns(),
        }

    def _deviation_columns(self) -> dict[str, Mapping[str, float]]:
        episodes = [np.stack(rows) for rows in self.deviations.values()]
        together = np.concatenate(episodes)  # [actions, 7]
        statistics = {
            "max": np.abs(together).max(axis=0),
            "p99": np.percentile(np.abs(together), PERCENTILE, axis=0),
            "size": np.abs(together).mean(axis=0),
            "mean": together.mean(axis=0),
            "drift": np.max([np.abs(rows.cumsum(axis=0)).max(axis=0) for rows in episodes], axis=0),
        }
        return {
            f"{name}_{unit}": {statistic: float(values[dimension]) for statistic, values in statistics.items()}
            for dimension, (name, unit) in enumerate(zip(ACTION_NAMES, DIMENSION_UNITS, strict=True))
        }


class Shadow:
    """Shows every frame to a reference and to several other decoders, each of which remembers its own episode."""

    def __init__(self, reference: ActionDecoder, decoders: Sequence[ActionDecoder], units: ActionUnits) -> None:
        """reference: who is right, as a rule the plain decoder. Raises ValueError for two decoders of one name."""
        names = [decoder.name for decoder in decoders]
        if len(set(names)) < len(names):
            raise ValueError(f"each decoder needs a name of its own, got {', '.join(names)}")
        self._reference = reference
        self._decoders = tuple(decoders)
        self._units = units
        self.records = [ShadowRecord(name) for name in names]

    def play(self, episodes: Sequence[LoggedEpisode]) -> None:
        """Replay episodes side by side and record what everybody decides; may be called again with others."""
        model = self._reference.model
        for prompts, sessions in replay(model, episodes):
            expected, _ = self._reference.decode(prompts, sessions, Stopwatch(model.device))
            reference = self._bins(expected)
            for decoder, record in zip(self._decoders, self.records, strict=True):
                ids, traces = decoder.decode(prompts, sessions, Stopwatch(model.device))
                record.traces += traces
                record.identical += (ids == expected).all(dim=1).tolist()
                for session, deviation in zip(
                    sessions, self._units.deviations(self._bins(ids), reference), strict=True
                ):
                    record.deviations.setdefault(session, []).append(deviation)
        for decoder in (self._reference, *self._decoders):
            for episode in episodes:
                decoder.forget(episode.name)

    def _bins(self, ids: Tensor) -> np.ndarray:
        """Bins of token ids, int64 `[B, 7]`; an id that is no action token has the nearest bin, as in decoding."""
        bins = self._reference.model.config.action_vocabulary - 1 - ids
        return bins.clamp(0, ACTION_BINS - 1).cpu().numpy()
