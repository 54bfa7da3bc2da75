"""Drafts what the target chose when things last looked like this, in this episode or an earlier one.

Knows an index of moments that grows with every action and forgets the oldest. Knows no network: pictures come as
sketches.
"""

from __future__ import annotations

import numpy as np

from policy.decoding.pictures import SKETCHED
from policy.drafting.base import DraftContext
from policy.openvla.config import ACTION_BINS, ACTION_DIMENSIONS

# How much the previous action counts beside the picture: differing by 16 bins in each dimension weighs as much as
# pictures do whose features differ by their own length.
_BINS_AS_FAR_AS_ANOTHER_PICTURE = 16.0
_NO_ACTION = -1
# Moments whose distances are kept while their actions are decoded.
_MOST_MEASURED = 64


class Retrieval:
    """Nearest neighbour among up to `capacity` moments with the same instruction.

    The distance is that of the pictures' features, relative to their length, plus that of the previous actions, plus a
    bin's worth for each bin by which a dimension that is already known differs.
    """

    name = "retrieval"
    needs_features = heeds_known = True

    def __init__(self, capacity: int = 4096) -> None:
        self._instructions = np.zeros(capacity, np.int64)
        self._pictures = np.zeros((capacity, SKETCHED), np.float32)
        self._squares = np.zeros(capacity, np.float32)  # of the pictures' lengths
        self._bins = np.zeros((capacity, 2 * ACTION_DIMENSIONS), np.float32)  # of the action before, and of this one
        self._count = 0
        # Of moments whose actions are being decoded: the arrays that they are told by, and distances from them.
        self._measured: dict[tuple[int, ...], tuple[tuple[np.ndarray, np.ndarray], np.ndarray]] = {}

    def propose(self, context: DraftContext) -> np.ndarray | None:
        distance = self._distances_once(context)
        if not len(distance):
            return None
        if known := len(context.known):
            decided = self._bins[: len(distance), ACTION_DIMENSIONS : ACTION_DIMENSIONS + known]
            apart = np.abs(decided - np.array(context.known, np.float32)).sum(axis=1)
            distance = distance + apart / _BINS_AS_FAR_AS_ANOTHER_PICTURE
        return self._bins[distance.argmin(), ACTION_DIMENSIONS:].astype(np.int64)

    def _distances_once(self, context: DraftContext) -> np.ndarray:
        """The same for what becomes known of one action, token by token."""
        moment = _sketch(context), context.history
        key = (context.instruction_key, *map(id, moment))
        if key not in self._measured:
            if len(self._measured) >= _MOST_MEASURED:
                self._measured.clear()
            self._measured[key] = moment, self._distances(context)
        return self._measured[key][1]

    def _distances(self, context: DraftContext) -> np.ndarray:
        """Of what is known before a pass, to each moment that is held; none where no instruction is the same."""
        held = min(self._count, len(self._bins))
        alike = self._instructions[:held] == context.instruction_key
        if not alike.any():
            return np.zeros(0, np.float32)
        sketch = _sketch(context)
        # All rows at once and without a copy of those that count: a full index is a megabyte.
        squares = self._squares[:held] + sketch @ sketch - 2 * (self._pictures[:held] @ sketch)
        apart = np.abs(self._bins[:held, :ACTION_DIMENSIONS] - _previous(context)).mean(axis=1)
        distance = np.sqrt(squares.clip(min=0)) + apart / _BINS_AS_FAR_AS_ANOTHER_PICTURE
        return np.where(alike, distance, np.float32(np.inf))

    def observe(self, context: DraftContext, action: np.ndarray) -> None:
        self._measured.clear()
        row, sketch = self._count % len(self._bins), _sketch(context)
        self._instructions[row] = context.instruction_key
        self._pictures[row], self._squares[row] = sketch, sketch @ sketch
        self._bins[row] = np.concatenate([_previous(context), action])
        self._count += 1


def _sketch(context: DraftContext) -> np.ndarray:
    assert context.features is not None, "whoever needs features is given them"
    return context.features


def _previous(context: DraftContext) -> np.ndarray:
    """The action before, or one that is far from all others at the first step."""
    if len(context.history):
        return context.history[-1].astype(np.float32)
    return np.full(ACTION_DIMENSIONS, _NO_ACTION * ACTION_BINS, np.float32)
