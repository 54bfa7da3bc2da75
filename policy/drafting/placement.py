"""Where drafted tokens pay: merges the proposals of several drafters into one tree of a given size.

Knows how far each drafter has lately been from the target's choice, dimension by dimension, and nothing of how a
drafter works. For every drafter and dimension it counts by how many bins the target's choice differed from the
proposal. These counts, laid around the new proposals, estimate how probable each bin is; a node's probability to stand
is the product along its path, and the most probable nodes are taken. As one path at most is accepted, that maximises
the expected number of accepted tokens (the argument of Chen et al. 2024, "Sequoia", and Li et al. 2024, "EAGLE-2"), if
the dimensions are independent of each other, which they are only roughly.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from policy.decoding.tree import DRAFTED_DIMENSIONS, ROOT, Draft
from policy.openvla.config import ACTION_BINS

# Differences beyond this are counted as misses: a node for each of them would never pay.
WIDEST_OFFSET = 16
# How fast old counts fade: after some 700 actions half of their weight is left.
DECAY = 0.999
# Before anything is measured, a proposal is taken to be right in 40 % of all cases, and off by one, two or three bins
# in 16, 6 and 3 % on either side, as if that had been seen in so many actions.
PRIOR_HIT = PRIOR_RATIO = 0.4
PRIOR_WIDTH = 3
PRIOR_WEIGHT = 8.0
# Alternatives considered for one dimension.
MOST_OPTIONS = 8


@dataclass(frozen=True, slots=True)
class Option:
    """A bin for one dimension. probability: that the target's choice lies within the rule's reach of it."""

    token: int
    probability: float
    drafter: str


class Placement:
    """One for all sessions of a policy.

    nodes: the most nodes in a tree. confidence: a node less probable than this to stand is left out.
    reach: see `AcceptanceRule.reach`; alternatives that one drafted bin already covers get no node of their own.
    """

    def __init__(self, nodes: int, confidence: float, reach: Sequence[int]) -> None:
        self.nodes = nodes
        self._confidence = confidence
        self._reach = tuple(reach)
        self._counts: dict[str, np.ndarray] = {}

    def plan(self, start: int, proposals: Mapping[str, np.ndarray]) -> Draft:
        """The tree for dimensions from `start` on.

        proposals: each drafter's bins, int64 `[7]`, -1 where it has none.
        """
        if not proposals or start >= DRAFTED_DIMENSIONS:
            return Draft(min(start, DRAFTED_DIMENSIONS))
        options = [self._options(dimension, proposals) for dimension in range(start, DRAFTED_DIMENSIONS)]
        tokens: list[int] = []
        parents: list[int] = []
        drafters: list[str] = []
        # Entries: negated probability, a counter that keeps the order of equals, parent, level and the option itself.
        waiting = [(-option.probability, count, ROOT, 0, option) for count, option in enumerate(options[0])]
        heapq.heapify(waiting)
        pushed = len(waiting)
        while waiting and len(tokens) < self.nodes:
            negated, _, parent, level, option = heapq.heappop(waiting)
            if -negated < self._confidence:
                break
            node = len(tokens)
            tokens.append(option.token)
            parents.append(parent)
            drafters.append(option.drafter)
            if level + 1 < len(options):
                for child in options[level + 1]:
                    heapq.heappush(waiting, (negated * child.probability, pushed, node, level + 1, child))
                    pushed += 1
        return Draft(start, tuple(tokens), tuple(parents), tuple(drafters))

    def learn(self, proposals: Mapping[str, np.ndarray], choices: np.ndarray) -> None:
        """Count how far proposals were from the target's choices, bins int64 `[7]`; entries of -1 are left out."""
        for name, proposal in proposals.items():
            counts = self._counts_of(name)
            offsets = choices[:DRAFTED_DIMENSIONS] - proposal[:DRAFTED_DIMENSIONS]
            proposed = np.flatnonzero(proposal[:DRAFTED_DIMENSIONS] >= 0)
            counts[proposed] *= DECAY
            near = proposed[np.abs(offsets[proposed]) <= WIDEST_OFFSET]
            counts[near, offsets[near] + WIDEST_OFFSET] += 1.0
            counts[np.setdiff1d(proposed, near), -1] += 1.0

    def _counts_of(self, name: str) -> np.ndarray:
        """Counts `[6, 2 * widest + 2]` by offset, the last column for all that is farther off."""
        if name not in self._counts:
            self._counts[name] = np.zeros((DRAFTED_DIMENSIONS, 2 * WIDEST_OFFSET + 2))
        return self._counts[name]

    def _options(self, dimension: int, proposals: Mapping[str, np.ndarray]) -> list[Option]:
        """Bins for one dimension, the most probable first."""
        named = [(name, int(proposal[dimension])) for name, proposal in proposals.items() if proposal[dimension] >= 0]
        if not named:
            return []
        masses = np.stack([self._mass(name, dimension, center) for name, center in named])  # [drafters, 256]
        reach = self._reach[dimension]
        options: list[Option] = []
        for _ in range(MOST_OPTIONS):
            within = _window_sums(masses, reach)
            drafter, token = np.unravel_index(int(within.argmax()), within.shape)
            probability = float(within[drafter, token])
            if probability < self._confidence:
                break
            options.append(Option(int(token), probability, named[drafter][0]))
            masses[:, max(0, token - reach) : token + reach + 1] = 0.0
        return options

    def _mass(self, name: str, dimension: int, center: int) -> np.ndarray:
        """Probability of each of the 256 bins to be the target's choice, as this drafter's record has it."""
        counts = self._counts_of(name)[dimension]
        chances = (counts + PRIOR_WEIGHT * _PRIOR)[:-1] / (counts.sum() + PRIOR_WEIGHT)
        mass = np.zeros(ACTION_BINS + 2 * WIDEST_OFFSET)
        mass[center : center + len(chances)] = chances
        return mass[WIDEST_OFFSET:-WIDEST_OFFSET]


def _prior() -> np.ndarray:
    """Chances `[2 * widest + 2]` by offset, as counted by `Placement`."""
    distances = np.abs(np.arange(-WIDEST_OFFSET, WIDEST_OFFSET + 1))
    chances = np.where(distances <= PRIOR_WIDTH, PRIOR_HIT * PRIOR_RATIO**distances, 0.0)
    return np.append(chances, 1.0 - chances.sum())


_PRIOR = _prior()


def _window_sums(masses: np.ndarray, reach: int) -> np.ndarray:
    """For every bin, the mass within `reach` bins of it, along the last axis."""
    if not reach:
        return masses
    sums = np.cumsum(np.pad(masses, ((0, 0), (reach + 1, reach))), axis=1)
    return sums[:, 2 * reach + 1 :] - sums[:, : -2 * reach - 1]
