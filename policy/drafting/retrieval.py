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


class Retrieval:
    """Nearest neighbour among up to `capacity` moments with the same instruction.

    The distance is that of the pictures' features, relative to their length, plus that of the previous actions, plus a
    bin's worth for each bin by which a dimension that is already known differs.
    """

    name = "retrieval"
    needs_features = True

    def __init__(self, capacity: int = 4096) -> None:
        self._instructions = np.zeros(capacity, np.int64)
        self._pictures = np.zeros((capacity, SKETCHED), np.float32)
        self._squares = np.zeros(capacity, np.float32)  # of the pictures' lengths
        self._bins = np.zeros((capacity, 2 * ACTION_DIMENSIONS), np.float32)  # of the action before, and of this one
        self._count = 0

    def propose(self, context: DraftContext) -> np.ndarray | None:
        held = min(self._count, len(self._bins))
        alike = self._instructions[:held] == context.instruction_key
        if not alike.any():
            return None
        sketch, known = _sketch(context), context.known
        # All rows at once and without a copy of those that count: a full index is a megabyte.
        squares = self._squares[:held] + sketch @ sketch - 2 * (self._pictures[:held] @ sketch)
        sought, weights = np.zeros((2, 2 * ACTION_DIMENSIONS), np.float32)
        sought[:ACTION_DIMENSIONS], weights[:ACTION_DIMENSIONS] = _previous(context), 1 / ACTION_DIMENSIONS
        places = slice(ACTION_DIMENSIONS, ACTION_DIMENSIONS + len(known))
        sought[places], weights[places] = known, 1
        apart = np.abs(self._bins[:held] - sought) @ weights
        distance = np.sqrt(squares.clip(min=0)) + apart / _BINS_AS_FAR_AS_ANOTHER_PICTURE
        nearest = np.where(alike, distance, np.inf).argmin()
        return self._bins[nearest, ACTION_DIMENSIONS:].astype(np.int64)

    def observe(self, context: DraftContext, action: np.ndarray) -> None:
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
