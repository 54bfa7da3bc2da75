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
from collections.abc import Iterator, Mapping, Sequence
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


class _Source:
    """One drafter's say. bins: proposed for each dimension, -1 for none. ranks: see `policy.drafting.ranking`; places
    count from the proposal or, where they are `absolute`, from bin 0.
    """

    def __init__(self, name: str, bins: list[int], ranks: list[Ranked], absolute: bool) -> None:
        self.bins = bins
        self._name, self._ranks, self._absolute = name, ranks, absolute

    def entries(self, dimension: int, standing: int) -> Iterator[tuple[float, int, str]]:
        """Negated probability, bin and the drafter's name, the most probable first."""
        proposed = self.bins[dimension]
        if proposed >= 0:
            base, name = 0 if self._absolute else proposed, self._name
            for negated, place in self._ranks[dimension][standing]:
                if 0 <= base + place < ACTION_BINS:
                    yield negated, base + place, name


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
        self._found = self._find(sources, 2 * spacing, dimension, standings)
        self._there: list[Option] = []

    def get(self, index: int) -> Option | None:
        """None where there are not so many. index: at most one beyond the last that was asked for."""
        if index == len(self._there):
            if (option := next(self._found, None)) is None:
                return None
            self._there.append(option)
        return self._there[index]

    def _find(self, sources: list[_Source], apart: int, dimension: int, standings: tuple[int, ...]) -> Iterator[Option]:
        proposed = [source.bins[dimension] for source in sources]
        entries = [source.entries(dimension, standing) for source, standing in zip(sources, standings, strict=True)]
        covered: set[int] = set()
        for negated, token, name in heapq.merge(*entries):
            if token not in covered:
                met = tuple([STANDING_OF[abs(token - bin_)] if bin_ >= 0 else 0 for bin_ in proposed])
                yield Option(token, -negated, name, met)
                if len(self._there) == MOST_OPTIONS:
                    return
                covered.update(range(token - apart, token + apart + 1))


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
