"""Drafts the previous action again. Knows nothing of how robots move on; the placement adds the bins around it."""

from __future__ import annotations

import numpy as np

from policy.drafting.base import DraftContext


class PreviousAction:
    """What the target chose last; nothing at the first step."""

    name = "previous"
    needs_features = heeds_known = False

    def propose(self, context: DraftContext) -> np.ndarray | None:
        return context.history[-1] if len(context.history) else None

    def observe(self, context: DraftContext, action: np.ndarray) -> None:
        """The history holds all there is to know."""
