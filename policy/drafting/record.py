"""How far proposals have lately been from the target's choices. Knows nothing of how a drafter works, or of trees.

For every drafter and dimension it counts by how many bins the target's choice differed from the proposal, separately by
how well the proposal had met the dimensions before. These counts, laid around a new proposal, estimate how probable
each bin is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from policy.decoding.tree import DRAFTED_DIMENSIONS
from policy.drafting.ranking import STANDINGS, Ranked, ranked, standings_before

# Differences beyond this are counted as misses: a node for each of them would never pay.
WIDEST_OFFSET = 40
# How fast old counts fade: after some 700 actions half of their weight is left.
DECAY = 0.999
# Before anything is measured, a proposal is taken to be right in 40 % of all cases, and off by one, two or three bins
# in 16, 6 and 3 % on either side, as if that had been seen in so many actions.
PRIOR_HIT = PRIOR_RATIO = 0.4
PRIOR_WIDTH = 3
PRIOR_WEIGHT = 8.0


class ProposalRecord:
    """One for all sessions.

    spacing: how near a bin must be to count as met, by dimension. confidence: what is less probable is not listed.
    """

    def __init__(self, spacing: Sequence[int], confidence: float) -> None:
        self._spacing = np.array(spacing[:DRAFTED_DIMENSIONS])
        self._confidence = confidence
        self._rows: dict[str, int] = {}
        # By drafter, dimension, standing and offset, the last for all that is farther off.
        self._counts = np.zeros((0, DRAFTED_DIMENSIONS, STANDINGS, 2 * WIDEST_OFFSET + 2))
        self._ranked: list[list[Ranked]] = []

    def learn(self, proposals: Mapping[str, np.ndarray], choices: np.ndarray) -> None:
        """Count proposals, bins int64 `[7]` each, for the target's choices, int64 `[7]`; entries of -1 are left out."""
        if not proposals:
            return
        drafters = np.array([self._row(name) for name in proposals])
        chosen = choices[:DRAFTED_DIMENSIONS]
        proposed = np.stack(list(proposals.values()))[:, :DRAFTED_DIMENSIONS]  # [drafters, 6]
        row, dimension = np.nonzero(proposed >= 0)
        offset = (chosen - proposed)[row, dimension]
        place = np.where(np.abs(offset) <= WIDEST_OFFSET, offset + WIDEST_OFFSET, -1)
        counted = (drafters[row], dimension, standings_before(proposed, chosen)[row, dimension])
        self._counts[counted] *= DECAY
        self._counts[(*counted, place)] += 1.0
        self._ranked = []

    def prepare(self) -> None:
        """Rank what was learned, which `rank` does otherwise when it is asked for: better while nobody waits for it."""
        if not self._ranked and self._rows:
            self._ranked = ranked(self._chances(), -WIDEST_OFFSET, self._spacing, self._confidence)

    def rank(self, name: str) -> list[Ranked]:
        """By dimension and standing, what the target may choose, as offsets from a drafter's proposal."""
        row = self._row(name)
        self.prepare()
        return self._ranked[row]

    def _row(self, name: str) -> int:
        if name not in self._rows:
            self._rows[name] = len(self._rows)
            self._counts = np.concatenate([self._counts, np.zeros((1, *self._counts.shape[1:]))])
            self._ranked = []
        return self._rows[name]

    def _chances(self) -> np.ndarray:
        """How probable the target's choices around a proposal are, `[drafters, 6, 3, 2 * widest + 1]`.

        Few counts of one standing lean on those of all, and these on the prior.
        """
        counts = self._counts
        overall = counts.sum(axis=2, keepdims=True)  # [drafters, 6, 1, offsets]
        expected = (overall + PRIOR_WEIGHT * _PRIOR) / (overall.sum(axis=3, keepdims=True) + PRIOR_WEIGHT)
        chances = (counts + PRIOR_WEIGHT * expected) / (counts.sum(axis=3, keepdims=True) + PRIOR_WEIGHT)
        return chances[..., :-1]


def _prior() -> np.ndarray:
    """Chances `[2 * widest + 2]` by offset, as counted."""
    distances = np.abs(np.arange(-WIDEST_OFFSET, WIDEST_OFFSET + 1))
    chances = np.where(distances <= PRIOR_WIDTH, PRIOR_HIT * PRIOR_RATIO**distances, 0.0)
    return np.append(chances, 1.0 - chances.sum())


_PRIOR = _prior()
