"""From how probable bins are to lists of the best of them. Knows nothing of where the probabilities come from."""

from __future__ import annotations

import numpy as np

from policy.openvla.config import ACTION_BINS

# Of one dimension by standing: entries of negated probability and place, the most probable first.
Ranked = list[list[tuple[float, int]]]

# A proposal has met the dimensions before exactly, nearly (all within so many bins) or not.
NEARLY = 3
STANDINGS = 3
# How well a proposal has met the dimensions before, by how far it was off at most.
STANDING_OF = [0, *[1] * NEARLY, *[2] * (ACTION_BINS - 1 - NEARLY)]


def standings_before(proposed: np.ndarray, choices: np.ndarray) -> np.ndarray:
    """How well the dimensions before each were met, int64 `[..., 6]`, by bins proposed (`[..., 6]`, -1 for none) where
    others were chosen (`[6]`).
    """
    missed = np.where(proposed >= 0, np.abs(choices - proposed), 0)
    farthest = np.maximum.accumulate(missed, axis=-1)[..., :-1]
    found = np.zeros(proposed.shape, np.int64)
    found[..., 1:] = (farthest > 0) + (farthest > NEARLY).astype(np.int64)
    return found


def ranked(chances: np.ndarray, first: int, reach: np.ndarray, confidence: float) -> list[list[Ranked]]:
    """By drafter, dimension and standing, what is more probable than `confidence`.

    chances: `[drafters, 6, 3, places]`. first: the number of the first place. reach: int64 `[6]`, by dimension; a place
    counts for all that lies within so many places.
    """
    within = _window_sums(chances, reach)
    kept = within > confidence
    lists = np.nonzero(kept.reshape(-1, kept.shape[-1]))  # which list, which place
    negated, (rows, places) = -within[kept], lists
    order = np.lexsort((negated, rows))  # of equals the first place comes first
    entries = list(zip(negated[order].tolist(), (places[order] + first).tolist(), strict=True))
    ends = np.cumsum(kept.sum(axis=-1)).tolist()
    flat = [entries[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    by_dimension = [flat[at : at + STANDINGS] for at in range(0, len(flat), STANDINGS)]
    dimensions = chances.shape[1]
    return [by_dimension[at : at + dimensions] for at in range(0, len(by_dimension), dimensions)]


def _window_sums(chances: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """For every place, the chances within `reach` of it, along the last axis."""
    if not reach.any():
        return chances
    count = chances.shape[-1]
    sums = np.zeros((*chances.shape[:-1], count + 1))
    np.cumsum(chances, axis=-1, out=sums[..., 1:])
    places, width = np.arange(count), reach[:, None, None]
    above = np.minimum(places + width, count - 1)[None] + 1
    below = np.maximum(places - width, 0)[None]
    return np.take_along_axis(sums, above, axis=-1) - np.take_along_axis(sums, below, axis=-1)
