"""Drafts an episode's first action, when nothing has happened yet, from the statistics of the training data."""

from __future__ import annotations

import numpy as np

from policy.drafting.base import DraftContext
from policy.openvla.action_tokens import BIN_EDGES, ActionStatistics
from policy.openvla.config import ACTION_BINS


class DatasetMean:
    """The mean action of the data set at the first step, nothing later.

    Statistics without a mean give the middle between the percentiles.
    """

    name = "dataset"
    needs_features = heeds_known = False

    def __init__(self, statistics: ActionStatistics) -> None:
        mean = statistics.mean if statistics.mean is not None else (statistics.q01 + statistics.q99) / 2
        span = statistics.q99 - statistics.q01
        scaled = 2 * (mean - statistics.q01) / np.where(span > 0, span, 1.0) - 1
        normalised = np.clip(np.where(statistics.mask, scaled, mean), -1, 1)
        self._action = np.clip(np.digitize(normalised, BIN_EDGES) - 1, 0, ACTION_BINS - 1)

    def propose(self, context: DraftContext) -> np.ndarray | None:
        return None if len(context.history) else self._action

    def observe(self, context: DraftContext, action: np.ndarray) -> None:
        """The statistics are those of the training data and stay so."""
