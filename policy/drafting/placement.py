"""Where drafted tokens pay: merges the proposals of several drafters into one tree of a given size.

Knows how probable each drafter makes each bin (`record`, `trust`), and nothing of how a drafter works. A node's
probability to stand is the product along its path, and the most probable nodes are taken. As one path at most is
accepted, that maximises the expected number of accepted tokens (the argument of Chen et al. 2024, "Sequoia", and Li et
al. 2024, "EAGLE-2").

Planning stands between the target's passes, so it is plain Python on short sorted lists: nothing is listed that no node
asks for.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from policy.decoding.tree import DRAFTED_DIMENSIONS, ROOT, Draft
from policy.drafting.ranking import STANDING_OF, Ranked
from policy.drafting.record import ProposalRecord
from policy.drafting.trust import Trust, best_bins
from policy.openvla.config import ACTION_BINS

# Alternatives considered for one dimension.
MOST_OPTIONS = 8
_NONE: Mapping[str, np.ndarray] = MappingProxyType({})


class Option(NamedTuple):
    """A bin for one dimension.

    probability: that the target's choice is this bin, or so near that it is accepted all the same. standings: how well
    every drafter's proposal would meet this dimension.
    """

    token: int
    probability: float
    drafter: str
    standings: tuple[int, ...]


@dataclass(slots=True)
class _Reading:
    """Entries of negated probability and place, the most probable first, and which comes next. base: the bin from which
    places count.
    """

    name: str
    entries: list[tuple[float, int]]
    base: int
    at: int = 0


class _Source:
    """One drafter's say. bins: proposed for each dimension, -1 for none. ranks: see `policy.drafting.ranking`; places
    count from the proposal or, where they are `absolute`, from bin 0.
    """

    def __init__(self, name: str, bins: list[int], ranks: list[Ranked], absolute: bool) -> None:
        self.name, self.bins = name, bins
        self._ranks, self._absolute = ranks, absolute

    def reading(self, dimension: int, standing: int) -> _Reading:
        """What it says of a dimension for which it proposes a bin."""
        base = 0 if self._absolute else self.bins[dimension]
        return _Reading(self.name, self._ranks[dimension][standing], base)


class Placement:
    """One for all sessions of a policy.

    nodes: the most nodes in a tree behind the prompt, whose pass has room for many at no cost. tail_nodes: in those of
        further passes, the same unless given. confidence: a node less probable than this to stand is left out.
    reach: see `AcceptanceRule.reach`. Alternatives lie about this far apart: nearer ones would mostly be accepted
        together, farther ones would leave the robot with drafts at the rim of what is tolerated.
    """

    def __init__(self, nodes: int, confidence: float, reach: Sequence[int], tail_nodes: int | None = None) -> None:
        self.nodes, self.tail_nodes = nodes, nodes if tail_nodes is None else tail_nodes
        self._confidence = confidence
        self._spacing = tuple(bins // 2 for bins in reach)
        self._record = ProposalRecord(self._spacing, confidence)
        self._trust = Trust(self._spacing, confidence)

    def plan(self, start: int, proposals: Mapping[str, np.ndarray], claims: Mapping[str, np.ndarray] = _NONE) -> Draft:
        """The tree for dimensions from `start` on.

        proposals: each drafter's bins, int64 `[7]`, -1 where it has none. claims: of drafters that are networks, how
        probable each bin is to be the target's choice, float32 `[6, 256]`, zeros where there is no opinion.
        """
        if start >= DRAFTED_DIMENSIONS or not (proposals or claims):
            return Draft(start)
        sources = [_Source(name, bins.tolist(), self._record.rank(name), False) for name, bins in proposals.items()]
        sources += [
            _Source(name, best_bins(rows).tolist(), self._trust.rank(name, rows), True) for name, rows in claims.items()
        ]
        return _Growth(sources, self._spacing, start, self._confidence).draft(self.tail_nodes if start else self.nodes)

    def learn(
        self, proposals: Mapping[str, np.ndarray], choices: np.ndarray, claims: Mapping[str, np.ndarray] = _NONE
    ) -> None:
        """Note how far proposals were from the target's choices, bins int64 `[7]`, and how right claims were.
        Entries of -1 and rows of zeros are left out.
        """
        self._trust.learn(claims, choices)
        self._record.learn(proposals, choices)

    def prepare(self) -> None:
        """Work out what the next plans need of what was learned, so that they do not have to."""
        self._record.prepare()


class _Options:
    """Bins for one dimension, the most probable first; found one by one as they are asked for."""

    def __init__(self, sources: list[_Source], spacing: int, dimension: int, standings: tuple[int, ...]) -> None:
        self._apart = 2 * spacing
        self._proposed = [source.bins[dimension] for source in sources]
        self._readings = [
            source.reading(dimension, standing)
            for source, standing in zip(sources, standings, strict=True)
            if source.bins[dimension] >= 0
        ]
        self._covered: set[int] = set()
        self._there: list[Option] = []

    def get(self, index: int) -> Option | None:
        """None where there are not so many. index: at most one beyond the last that was asked for."""
        if index == len(self._there):
            if (option := self._next()) is None:
                return None
            self._there.append(option)
        return self._there[index]

    def _next(self) -> Option | None:
        """The most probable bin that none covers yet; of equals the lowest, of the first source that says it."""
        if len(self._there) == MOST_OPTIONS:
            return None
        covered = self._covered
        best, first = None, None
        for reading in self._readings:
            at, entries, base = reading.at, reading.entries, reading.base
            while at < len(entries) and ((bin_ := base + entries[at][1]) in covered or not 0 <= bin_ < ACTION_BINS):
                at += 1
            reading.at = at
            if at < len(entries):
                entry = entries[at][0], base + entries[at][1]
                if best is None or entry < best:
                    best, first = entry, reading
        if best is None or first is None:
            return None
        first.at += 1
        negated, token = best
        covered.update(range(token - self._apart, token + self._apart + 1))
        met = tuple([STANDING_OF[abs(token - bin_)] if bin_ >= 0 else 0 for bin_ in self._proposed])
        return Option(token, -negated, first.name, met)


class _Growth:
    """A tree that takes the most probable of all nodes that its sources offer, one at a time."""

    def __init__(self, sources: list[_Source], spacing: Sequence[int], start: int, confidence: float) -> None:
        self._sources, self._spacing, self._start, self._confidence = sources, spacing, start, confidence
        self._options: dict[tuple[int, tuple[int, ...]], _Options] = {}
        # Negated probability, a counter that keeps the order of equals, parent, its probability, options and which.
        self._waiting: list[tuple[float, int, int, float, _Options, int, Option]] = []
        self._offered = 0

    def draft(self, nodes: int) -> Draft:
        """Grow up to so many nodes. A node's next sibling and its first child wait until it is taken itself."""
        tokens: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        drafters: list[str] = []
        standings: list[tuple[int, ...]] = []  # of every source, on the way down to a node
        nothing = (0,) * len(self._sources)
        self._offer(self._at(self._start, nothing), 0, ROOT, 1.0)
        while self._waiting and len(tokens) < nodes:
            negated, _, parent, before, options, index, option = heapq.heappop(self._waiting)
            node = len(tokens)
            tokens.append(option.token)
            parents.append(parent)
            drafters.append(option.drafter)
            depths.append(self._start if parent == ROOT else depths[parent] + 1)
            standings.append(tuple(map(max, nothing if parent == ROOT else standings[parent], option.standings)))
            if len(tokens) == nodes:
                break
            self._offer(options, index + 1, parent, before)
            if depths[node] + 1 < DRAFTED_DIMENSIONS:
                self._offer(self._at(depths[node] + 1, standings[node]), 0, node, -negated)
        return Draft(self._start, tuple(tokens), tuple(parents), tuple(drafters))

    def _at(self, dimension: int, standings: tuple[int, ...]) -> _Options:
        options = self._options.get((dimension, standings))
        if options is None:
            options = _Options(self._sources, self._spacing[dimension], dimension, standings)
            self._options[dimension, standings] = options
        return options

    def _offer(self, options: _Options, index: int, parent: int, before: float) -> None:
        """One option for the place behind a node that stands with the probability `before`."""
        option = options.get(index)
        if option is not None and (probability := before * option.probability) >= self._confidence:
            self._offered += 1
            heapq.heappush(self._waiting, (-probability, self._offered, parent, before, options, index, option))
