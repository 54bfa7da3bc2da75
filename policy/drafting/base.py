"""Who proposes actions before the target has been asked: what a drafter is told, and what it may answer.

Knows no network: drafters of this kind cost no forward pass, and their proposals ride in the target's prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class DraftContext:
    """What is known of a session when an action is drafted.

    instruction_key: equal for equal prompts. history: int64 `[T, 7]`, bins of the episode's actions so far, oldest
    first. known: bins of this action that are decided already, so the draft starts at dimension `len(known)`.
    features: float32 `[features]`, the picture's projected patches, averaged over cells; None unless a drafter needs
    it.
    """

    instruction_key: int
    history: np.ndarray
    known: tuple[int, ...] = ()
    features: np.ndarray | None = None

    def knowing(self, known: Sequence[int]) -> DraftContext:
        """The same moment after some dimensions have been decided."""
        return replace(self, known=tuple(known))


class Drafter(Protocol):
    """Proposes whole actions. One drafter serves all sessions; what belongs to one session is in the context.

    needs_features: whether `DraftContext.features` must be there, which costs a copy from the device.
    """

    name: str
    needs_features: bool

    def propose(self, context: DraftContext) -> np.ndarray | None:
        """The bins expected for the next action, int64 `[7]`, or None for no opinion. Entries of dimensions that are
        known already are ignored.
        """

    def observe(self, context: DraftContext, action: np.ndarray) -> None:
        """Learn what the action, bins int64 `[7]`, came to be in a context without `known`."""
