"""Drafts by damped extrapolation: the change from one action to the next goes on, weakened.

Knows the coefficients, how they are fitted to logged actions and the file they are kept in. Knows no pictures.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from policy.drafting.base import DraftContext
from policy.openvla.config import ACTION_BINS, ACTION_DIMENSIONS

MOTION_FILE = "motion_drafter.json"
# Values tried for the two coefficients of each dimension.
_LAST = np.linspace(0.0, 1.2, 13)
_BEFORE = np.linspace(-0.6, 0.6, 13)
# An extrapolation is useful where it is this close; see `fit_motion`.
_NEAR = 1


@dataclass(frozen=True, slots=True)
class MotionCoefficients:
    """x[t] is drafted as x[t-1] + last * (x[t-1] - x[t-2]) + before * (x[t-2] - x[t-3]), in bins and per dimension.

    last, before: one coefficient for each of the 7 dimensions. The defaults, for checkpoints without a file, let 0.4 of
    the last change go on.
    """

    last: tuple[float, ...] = (0.4,) * ACTION_DIMENSIONS
    before: tuple[float, ...] = (0.0,) * ACTION_DIMENSIONS

    def __post_init__(self) -> None:
        for name in ("last", "before"):
            values = getattr(self, name)
            if len(values) != ACTION_DIMENSIONS or not np.isfinite(values).all():
                raise ValueError(f"{name} must be {ACTION_DIMENSIONS} finite coefficients, got {values}")

    @classmethod
    def load(cls, directory: Path) -> MotionCoefficients:
        """The coefficients beside a checkpoint's weights, or the defaults. Raises ValueError for a damaged file."""
        path = directory / MOTION_FILE
        if not path.is_file():
            return cls()
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            return cls(tuple(map(float, stored["last"])), tuple(map(float, stored["before"])))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} holds no motion coefficients: {error}; run scripts/fit_motion_drafter.py"
            ) from error

    def save(self, directory: Path) -> Path:
        """Write the file that `load` reads."""
        path = directory / MOTION_FILE
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path

    def extrapolate(self, history: np.ndarray) -> np.ndarray:
        """Bins int64 `[7]` expected after `history`, int64 `[T, 7]` with T at least 1."""
        recent = history[-3:].astype(float)
        changes = np.diff(recent, axis=0)
        expected = recent[-1]
        if len(changes):
            expected = expected + np.array(self.last) * changes[-1]
        if len(changes) > 1:
            expected = expected + np.array(self.before) * changes[-2]
        return np.clip(np.rint(expected), 0, ACTION_BINS - 1).astype(np.int64)


class MotionDrafter:
    """Extrapolates what the target chose; nothing at the first step, the previous action at the second."""

    name = "motion"
    needs_features = heeds_known = False

    def __init__(self, coefficients: MotionCoefficients) -> None:
        self._coefficients = coefficients

    def propose(self, context: DraftContext) -> np.ndarray | None:
        return self._coefficients.extrapolate(context.history) if len(context.history) else None

    def observe(self, context: DraftContext, action: np.ndarray) -> None:
        """The history holds all there is to know."""


def fit_motion(episodes: Sequence[np.ndarray]) -> MotionCoefficients:
    """The coefficients that come closest on logged episodes, bins int64 `[T, 7]` each.

    Per dimension, of a grid of values those with the largest share of drafts within one bin: what pays is a draft that
    is accepted, and by how much the others miss does not matter. Among equals the smallest coefficients win.
    Raises ValueError where no episode has four actions.
    """
    windows = [np.lib.stride_tricks.sliding_window_view(actions, 4, axis=0) for actions in episodes if len(actions) > 3]
    if not windows:
        raise ValueError(f"none of {len(episodes)} episodes has 4 actions or more, which a fit needs")
    oldest, older, newest, wanted = np.moveaxis(np.concatenate(windows).astype(float), 2, 0)  # [N, 7] each
    candidates = sorted(itertools.product(_LAST, _BEFORE), key=lambda pair: (abs(pair[0]) + abs(pair[1]), pair))
    best_share, best = np.full(ACTION_DIMENSIONS, -1.0), np.zeros((2, ACTION_DIMENSIONS))
    for last, before in candidates:
        drafted = np.rint(newest + last * (newest - older) + before * (older - oldest))
        share = (np.abs(drafted - wanted) <= _NEAR).mean(axis=0)
        better = share > best_share + 1e-9
        best_share = np.where(better, share, best_share)
        best[:, better] = np.array([[last], [before]])
    last, before = (tuple(round(float(value), 3) for value in row) for row in best)
    return MotionCoefficients(last, before)
