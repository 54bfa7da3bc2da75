"""Who drafts an action: what a drafter is told, and what it may answer.

Three kinds. A `Drafter` knows what happened before, and proposes bins on the host. A `SeeingDrafter` is a network that
looks at the camera frames itself. Both draft before the target is asked, so their drafts ride in the prompt's pass. A
`Head` is a network that reads the target's features, so it drafts what that pass has left open.
Networks answer with chances: how probable each bin is to be the target's choice. Knows none of the drafters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from torch import Tensor

Pending = Callable[[], np.ndarray]
"""A draft under way on the device. Called, it waits and gives chances, float32 `[B, 6, 256]`, for dimensions 0..5 (the
gripper is never drafted): how probable each bin is to be the target's choice; rows of zeros where there is no opinion.
"""


@dataclass(frozen=True, slots=True)
class DraftContext:
    """What is known of a session when an action is drafted.

    instruction_key: equal for equal prompts. history: int64 `[T, 7]`, bins of the episode's actions so far, oldest
    first. known: bins of this action that are decided already, so the draft starts at dimension `len(known)`.
    features: float32 `[64]`, a sketch of the frame, see `policy.decoding.pictures`; None unless a drafter needs it.
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

    needs_features: whether `DraftContext.features` must be there. heeds_known: whether `DraftContext.known` changes
    what it proposes; others are asked once for each action.
    """

    name: str
    needs_features: bool
    heeds_known: bool

    def propose(self, context: DraftContext) -> np.ndarray | None:
        """The bins expected for the next action, int64 `[7]`, or None for no opinion. Entries of dimensions that are
        known already are ignored.
        """

    def observe(self, context: DraftContext, action: np.ndarray) -> None:
        """Learn what the action, bins int64 `[7]`, came to be in a context without `known`."""


class SeeingDrafter(Protocol):
    """Looks at the frames itself."""

    name: str

    def look(self, pixels: Tensor, instructions: Sequence[str]) -> Pending:
        """Start to draft for B sessions, and do not wait: meanwhile the target looks, too.

        pixels: float32 `[B, 6, 224, 224]` on the target's device, as the target sees them. instructions: B texts.
        """

    def rehearse(self, batch: int, text: int) -> None:
        """Run what drafts for prompts of so many text ids take, so that nothing is recorded later on."""


class Head(Protocol):
    """Drafts from the target's features. `read` comes first for every batch of prompts, then any number of `draft`."""

    name: str

    def read(self, embeddings: Tensor, features: Tensor, lengths: Tensor) -> None:
        """Take in the prompts' pass.

        embeddings, features: `[B, S, width]`, the target's input and its hidden states behind the final norm, padded on
        the right. lengths: int64 `[B]`.
        """

    def draft(self, bins: Tensor, features: Tensor, counts: Tensor, fewest: int) -> Tensor:
        """Chances, float32 `[B, 6, 256]` on the device, of what follows the decided tokens; zeros for what is decided.

        bins: int64 `[B, 5]`, the decided tokens' bins. features: `[B, 5, width]`, the target's hidden states that chose
        them. counts: int64 `[B]`, how many of these count, at least one; the others may hold anything.
        fewest: the smallest of the counts, on the host.
        """
