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
        self._previous = np.zeros((capacity, ACTION_DIMENSIONS), np.float32)
        self._actions = np.zeros((capacity, ACTION_DIMENSIONS), np.int64)
        self._count = 0

    def propose(self, context: DraftContext) -> np.ndarray | None:
        held = min(self._count, len(self._actions))
        rows = np.flatnonzero(self._instructions[:held] == context.instruction_key)
        if not len(rows):
            return None
        pictures = np.linalg.norm(self._pictures[rows] - _sketch(context), axis=1)
        moved = np.abs(self._previous[rows] - _previous(context)).mean(axis=1)
        known = np.array(context.known, np.int64)
        missed = np.abs(self._actions[rows, : len(known)] - known).sum(axis=1)
        distance = pictures + (moved + missed) / _BINS_AS_FAR_AS_ANOTHER_PICTURE
        return self._actions[rows[distance.argmin()]]

    def observe(self, context: DraftContext, action: np.ndarray) -> None:
        row = self._count % len(self._actions)
        self._instructions[row] = context.instruction_key
        self._pictures[row] = _sketch(context)
        self._previous[row] = _previous(context)
        self._actions[row] = action
        self._count += 1


def _sketch(context: DraftContext) -> np.ndarray:
    assert context.features is not None, "whoever needs features is given them"
    return context.features


def _previous(context: DraftContext) -> np.ndarray:
    """The action before, or one that is far from all others at the first step."""
    if len(context.history):
        return context.history[-1].astype(np.float32)
    return np.full(ACTION_DIMENSIONS, _NO_ACTION * ACTION_BINS, np.float32)
