"""Where drafted tokens pay: merges the proposals of several drafters into one tree of a given size.

Knows how far each drafter has lately been from the target's choice, dimension by dimension, and nothing of how a
drafter works. For every drafter and dimension it counts by how many bins the target's choice differed from the
proposal, separately for actions that the proposal had met so far and for those that it had missed. These counts, laid
around a new proposal, estimate how probable each bin is; a node's probability to stand is the product along its path,
and the most probable nodes are taken. As one path at most is accepted, that maximises the expected number of accepted
tokens (the argument of Chen et al. 2024, "Sequoia", and Li et al. 2024, "EAGLE-2").
Drafters that are networks say themselves how probable each bin is. They are believed as far as they have been right:
their claims are raised to a power that makes the target's choices so far most likely (temperature scaling, Guo et al.
2017, "On Calibration of Modern Neural Networks"; here it goes on with every action). Too modest ones are sharpened, and
those of a drafter that is no good become so flat that no bin gets a node.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from policy.decoding.tree import DRAFTED_DIMENSIONS, ROOT, Draft
from policy.openvla.config import ACTION_BINS

# Differences beyond this are counted as misses: a node for each of them would never pay.
WIDEST_OFFSET = 40
# How fast old counts fade: after some 700 actions half of their weight is left.
DECAY = 0.999
# Before anything is measured, a proposal is taken to be right in 40 % of all cases, and off by one, two or three bins
# in 16, 6 and 3 % on either side, as if that had been seen in so many actions.
PRIOR_HIT = PRIOR_RATIO = 0.4
PRIOR_WIDTH = 3
PRIOR_WEIGHT = 8.0
# Alternatives considered for one dimension.
MOST_OPTIONS = 8
# A proposal has met the dimensions before exactly, nearly (all within so many bins) or not.
NEARLY = 3
STANDINGS = 3


# How fast the powers of claims are fitted, how much one action can change them, and how far they go.
POWER_RATE = 0.3
LARGEST_STEP = 0.5
LARGEST_POWER = 64.0
# Claims below this count as this.
_LEAST_CLAIM = 1e-8
_NONE: Mapping[str, np.ndarray] = MappingProxyType({})


class Option(NamedTuple):
    """A bin for one dimension.

    probability: that the target's choice is this bin, or so near that it is accepted all the same.
    """

    token: int
    probability: float
    drafter: str


class Placement:
    """One for all sessions of a policy.

    nodes: the most nodes in a tree. confidence: a node less probable than this to stand is left out.
    reach: see `AcceptanceRule.reach`. Alternatives lie about this far apart: nearer ones would mostly be accepted
        together, farther ones would leave the robot with drafts at the rim of what is tolerated.
    """

    def __init__(self, nodes: int, confidence: float, reach: Sequence[int]) -> None:
        self.nodes = nodes
        self._confidence = confidence
        self._spacing = tuple(bins // 2 for bins in reach)
        self._counts: dict[str, np.ndarray] = {}
        self._powers: dict[str, np.ndarray] = {}

    def plan(self, start: int, proposals: Mapping[str, np.ndarray], claims: Mapping[str, np.ndarray] = _NONE) -> Draft:
        """The tree for dimensions from `start` on.

        proposals: each drafter's bins, int64 `[7]`, -1 where it has none. claims: of drafters that are networks, how
        probable each bin is to be the target's choice, float32 `[6, 256]`, zeros where there is no opinion.
        """
        if start >= DRAFTED_DIMENSIONS or not (proposals or claims):
            return Draft(start)
        bins = [proposal.tolist() for proposal in (*proposals.values(), *map(_best_bins, claims.values()))]
        tables = [(self._chances(name), 0) for name in proposals]
        tables += [(self._believed(name, rows), WIDEST_OFFSET) for name, rows in claims.items()]
        options = lru_cache(maxsize=None)(partial(self._options, [*proposals, *claims], bins, tables))
        growth = _Growth(start, self._confidence)
        nothing = (0,) * len(bins)
        farthest: list[tuple[int, ...]] = []  # by node and drafter, how far off the proposal was at most
        growth.offer(options(start, nothing), ROOT, 1.0)
        while len(growth.tokens) < self.nodes and (node := growth.take()) is not None:
            parent, dimension = growth.parents[node], growth.depths[node]
            offsets = (abs(growth.tokens[node] - row[dimension]) if row[dimension] >= 0 else 0 for row in bins)
            farthest.append(tuple(map(max, nothing if parent == ROOT else farthest[parent], offsets)))
            if dimension + 1 < DRAFTED_DIMENSIONS:
                standings = tuple(map(_standing, farthest[node]))
                growth.offer(options(dimension + 1, standings), node, growth.probabilities[node])
        return growth.draft()

    def learn(
        self, proposals: Mapping[str, np.ndarray], choices: np.ndarray, claims: Mapping[str, np.ndarray] = _NONE
    ) -> None:
        """Count how far proposals were from the target's choices, bins int64 `[7]`, and how right claims were.
        Entries of -1 and rows of zeros are left out.
        """
        for name, rows in claims.items():
            self._learn_claims(name, rows, choices)
        for name, proposal in proposals.items():
            counts = self._counts_of(name)
            proposed = np.flatnonzero(proposal[:DRAFTED_DIMENSIONS] >= 0)
            for dimension in proposed:
                before = proposed[proposed < dimension]
                row = counts[dimension, _standing(np.abs(choices[before] - proposal[before]).max(initial=0))]
                row *= DECAY
                offset = choices[dimension] - proposal[dimension]
                row[offset + WIDEST_OFFSET if abs(offset) <= WIDEST_OFFSET else -1] += 1.0

    def _learn_claims(self, name: str, rows: np.ndarray, choices: np.ndarray) -> None:
        """One step up the gradient of the choices' log-likelihood, by dimension and standing."""
        best, powers, logs = _best_bins(rows), self._powers_of(name), _logarithms(rows)
        claimed = np.flatnonzero(best >= 0)
        for dimension in claimed:
            before = claimed[claimed < dimension]
            standing = _standing(np.abs(choices[before] - best[before]).max(initial=0))
            power, log = powers[dimension, standing], logs[dimension]
            expected = _normalised(power * log) @ log
            step = POWER_RATE * power * (log[choices[dimension]] - expected)
            power *= np.exp(np.clip(step, -LARGEST_STEP, LARGEST_STEP))
            powers[dimension, standing] = np.clip(power, 1 / LARGEST_POWER, LARGEST_POWER)

    def _powers_of(self, name: str) -> np.ndarray:
        """Powers `[6, 3]` by dimension and standing; at first a network is taken at its word."""
        if name not in self._powers:
            self._powers[name] = np.ones((DRAFTED_DIMENSIONS, STANDINGS))
        return self._powers[name]

    def _believed(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Claims `[6, 256]` raised to their powers: `[6, 3, 256]` by dimension and standing."""
        believed = _normalised(self._powers_of(name)[:, :, None] * _logarithms(rows)[:, None])
        return np.where(rows.sum(axis=1)[:, None, None] > 0, believed, 0.0)

    def _counts_of(self, name: str) -> np.ndarray:
        """Counts `[6, 3, 2 * widest + 2]` by dimension, standing and offset, the last for all that is farther off."""
        if name not in self._counts:
            self._counts[name] = np.zeros((DRAFTED_DIMENSIONS, STANDINGS, 2 * WIDEST_OFFSET + 2))
        return self._counts[name]

    def _options(
        self,
        names: list[str],
        bins: list[list[int]],
        tables: list[tuple[np.ndarray, int]],
        dimension: int,
        standings: tuple[int, ...],
    ) -> list[Option]:
        """Bins for one dimension, the most probable first.

        tables: each drafter's probabilities `[6, 3, width]`, and where in the padded row of bins they begin; 0 where
        they lie around the proposal. standings: of each proposal so far.
        """
        masses = np.zeros((len(names), ACTION_BINS + 2 * WIDEST_OFFSET))  # proposals' surroundings reach over the ends
        for mass, proposal, (table, fixed), standing in zip(masses, bins, tables, standings, strict=True):
            if (center := proposal[dimension]) >= 0:
                first = fixed or center
                mass[first : first + table.shape[2]] = table[dimension, standing]
        spacing = self._spacing[dimension]
        within = _window_sums(masses[:, WIDEST_OFFSET:-WIDEST_OFFSET], spacing)  # [drafters, 256]
        best = within.max(axis=0)
        options: list[Option] = []
        for _ in range(MOST_OPTIONS):
            token = int(best.argmax())
            if best[token] <= self._confidence:
                break
            options.append(Option(token, float(best[token]), names[int(within[:, token].argmax())]))
            best[max(0, token - 2 * spacing) : token + 2 * spacing + 1] = 0.0  # what this one covers already
        return options

    def _chances(self, name: str) -> np.ndarray:
        """How probable the target's choices around a proposal are, `[6, 3, 2 * widest + 1]`, as the record has it.

        Few counts of one standing lean on those of all, and these on the prior.
        """
        counts = self._counts_of(name)
        overall = counts.sum(axis=1)  # [6, offsets]
        expected = (overall + PRIOR_WEIGHT * _PRIOR) / (overall.sum(axis=1, keepdims=True) + PRIOR_WEIGHT)
        chances = (counts + PRIOR_WEIGHT * expected[:, None]) / (counts.sum(axis=2, keepdims=True) + PRIOR_WEIGHT)
        return chances[:, :, :-1]


class _Growth:
    """A tree that takes the most probable of all nodes it was offered, one at a time."""

    def __init__(self, start: int, confidence: float) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.probabilities: list[float] = []
        self._start = start
        self._confidence = confidence
        self._drafters: list[str] = []
        # Entries: negated probability, a counter that keeps the order of equals, parent and option.
        self._waiting: list[tuple[float, int, int, Option]] = []
        self._offered = 0

    def offer(self, options: Sequence[Option], parent: int, probability: float) -> None:
        """Children that a node, which stands with this probability, might have."""
        for option in options:
            if probability * option.probability < self._confidence:
                break  # the others are less probable still
            entry = (-probability * option.probability, self._offered, parent, option)
            heapq.heappush(self._waiting, entry)
            self._offered += 1

    def take(self) -> int | None:
        """Add the best node; None when none is left."""
        if not self._waiting:
            return None
        negated, _, parent, option = heapq.heappop(self._waiting)
        self.tokens.append(option.token)
        self.parents.append(parent)
        self.depths.append(self._start if parent == ROOT else self.depths[parent] + 1)
        self.probabilities.append(-negated)
        self._drafters.append(option.drafter)
        return len(self.tokens) - 1

    def draft(self) -> Draft:
        return Draft(self._start, tuple(self.tokens), tuple(self.parents), tuple(self._drafters))


def _standing(farthest: int) -> int:
    """How well a proposal has met the dimensions before: 0 exactly (or there are none), 1 nearly, 2 not."""
    return 0 if farthest == 0 else 1 if farthest <= NEARLY else 2


def _best_bins(claims: np.ndarray) -> np.ndarray:
    """The most probable bin of each drafted dimension, -1 without an opinion: int64 `[7]` of `[6, 256]`."""
    return np.append(np.where(claims.any(axis=1), claims.argmax(axis=1), -1), -1)


def _logarithms(claims: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(claims, _LEAST_CLAIM, dtype=np.float64))


def _normalised(logarithms: np.ndarray) -> np.ndarray:
    """Probabilities that add up to 1 along the last axis."""
    weights = np.exp(logarithms - logarithms.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _prior() -> np.ndarray:
    """Chances `[2 * widest + 2]` by offset, as counted by `Placement`."""
    distances = np.abs(np.arange(-WIDEST_OFFSET, WIDEST_OFFSET + 1))
    chances = np.where(distances <= PRIOR_WIDTH, PRIOR_HIT * PRIOR_RATIO**distances, 0.0)
    return np.append(chances, 1.0 - chances.sum())


_PRIOR = _prior()


def _window_sums(masses: np.ndarray, width: int) -> np.ndarray:
    """For every bin, the mass within `width` bins of it, along the last axis."""
    if not width:
        return masses
    sums = np.cumsum(np.pad(masses, ((0, 0), (width + 1, width))), axis=1)
    return sums[:, 2 * width + 1 :] - sums[:, : -2 * width - 1]
