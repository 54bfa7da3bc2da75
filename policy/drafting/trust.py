"""How far networks are believed that say themselves how probable each bin is.

As far as they have been right: their claims are raised to a power that makes the target's choices so far most likely
(temperature scaling, Guo et al. 2017, "On Calibration of Modern Neural Networks"; here it goes on with every action).
Too modest claims are sharpened, and those of a drafter that is no good become so flat that no bin gets a node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from policy.decoding.tree import DRAFTED_DIMENSIONS
from policy.drafting.ranking import STANDINGS, Ranked, ranked, standings_before

# How fast the powers of claims are fitted, how much one action can change them, and how far they go.
POWER_RATE = 0.3
LARGEST_STEP = 0.5
LARGEST_POWER = 64.0
# Claims below this count as this.
_LEAST_CLAIM = 1e-8


class Trust:
    """One for all sessions. spacing, confidence: as of `ProposalRecord`."""

    def __init__(self, spacing: Sequence[int], confidence: float) -> None:
        self._spacing = np.array(spacing[:DRAFTED_DIMENSIONS])
        self._confidence = confidence
        self._powers: dict[str, np.ndarray] = {}

    def learn(self, claims: Mapping[str, np.ndarray], choices: np.ndarray) -> None:
        """One step up the gradient of the log-likelihood of the target's choices, bins int64 `[7]`.

        claims: float32 `[6, 256]` each; rows of zeros are left out.
        """
        chosen = choices[:DRAFTED_DIMENSIONS]
        for name, rows in claims.items():
            best = best_bins(rows)[:DRAFTED_DIMENSIONS]
            claimed = np.flatnonzero(best >= 0)
            at = (claimed, standings_before(best, chosen)[claimed])
            powers, logs = self._powers_of(name), _logarithms(rows[claimed])
            power = powers[at]
            expected = (_normalised(power[:, None] * logs) * logs).sum(axis=1)
            step = POWER_RATE * power * (logs[np.arange(len(claimed)), chosen[claimed]] - expected)
            power *= np.exp(np.clip(step, -LARGEST_STEP, LARGEST_STEP))
            powers[at] = np.clip(power, 1 / LARGEST_POWER, LARGEST_POWER)

    def rank(self, name: str, rows: np.ndarray) -> list[Ranked]:
        """By dimension and standing, the bins of new claims `[6, 256]`, as far as they are believed."""
        believed = _normalised(self._powers_of(name)[:, :, None] * _logarithms(rows)[:, None])
        believed[~rows.any(axis=1)] = 0.0
        return ranked(believed[None], 0, self._spacing, self._confidence)[0]

    def _powers_of(self, name: str) -> np.ndarray:
        """Powers `[6, 3]` by dimension and standing; at first a network is taken at its word."""
        if name not in self._powers:
            self._powers[name] = np.ones((DRAFTED_DIMENSIONS, STANDINGS))
        return self._powers[name]


def best_bins(claims: np.ndarray) -> np.ndarray:
    """The most probable bin of each drafted dimension, -1 without an opinion: int64 `[7]` of `[6, 256]`."""
    return np.append(np.where(claims.any(axis=1), claims.argmax(axis=1), -1), -1)


def _logarithms(claims: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(claims, _LEAST_CLAIM, dtype=np.float64))


def _normalised(logarithms: np.ndarray) -> np.ndarray:
    """Probabilities that add up to 1 along the last axis."""
    weights = np.exp(logarithms - logarithms.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
