"""What a rule is that decides which drafted tokens stand.

Knows the shapes and what is remembered of an episode. Each rule has a file of its own.

Everything is in action bins (0..255, ascending in value), and everything is a tensor on the model's device: a rule is
asked between two forward passes, so it neither loops over nodes nor waits for the device. Only `update` comes after the
action, where the host is: its tensors are on the host.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from policy.decoding.tree import TokenTree
from policy.openvla.config import ACTION_DIMENSIONS


@dataclass(frozen=True, slots=True)
class AcceptanceState:
    """What rules remember between the actions of an episode, for B sessions side by side.

    signed_error: float32 `[B, 7]`, leaky sum of the executed deviations from the target, in bins.
    previous: int64 `[B, 7]`, bins of the last action, -1 before the first.
    repeats: int64 `[B]`, how many actions in a row were equal to their predecessor on an unchanged picture.
    """

    signed_error: Tensor
    previous: Tensor
    repeats: Tensor

    @classmethod
    def fresh(cls, batch: int, device: torch.device | str = "cpu") -> AcceptanceState:
        """The state at the start of an episode."""
        return cls(
            torch.zeros(batch, ACTION_DIMENSIONS, device=device),
            torch.full((batch, ACTION_DIMENSIONS), -1, dtype=torch.int64, device=device),
            torch.zeros(batch, dtype=torch.int64, device=device),
        )

    @classmethod
    def stack(cls, states: Sequence[AcceptanceState]) -> AcceptanceState:
        """Several sessions' states as one."""
        return cls(*(torch.cat([getattr(state, field.name) for state in states]) for field in fields(cls)))

    def row(self, index: int) -> AcceptanceState:
        """One session's state, with B = 1."""
        return AcceptanceState(*(getattr(self, field.name)[index : index + 1] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A rule's decision on every node, each `[B, N]`.

    accepted: bool, whether the node may stand, judged by itself; its ancestors are looked at by the decoder.
    emitted: int64, the bin that is emitted where the node is on the chosen path.
    distance: int64, bins between the node's token and the target's own choice, at least 0.
    """

    accepted: Tensor
    emitted: Tensor
    distance: Tensor


class AcceptanceRule(ABC):
    """A rule with its settings; what it remembers of a session is handed in.

    reach: for each of the 7 dimensions, up to how many bins from the target a draft is accepted as a rule; 0 under
        exact acceptance. Only tells drafters how far apart alternatives must lie to be worth a node.
    forced_reasons: names of the columns of `forced_exact`; empty for rules that never change their mind.

    Every rule accepts a token that is the target's own choice.
    """

    name: str
    reach: tuple[int, ...]
    forced_reasons: tuple[str, ...] = ()

    @abstractmethod
    def accept(self, tree: TokenTree, logits_of_parent: Tensor, depths: Tensor, state: AcceptanceState) -> Verdict:
        """Judge every node.

        logits_of_parent: float32 `[B, N, 256]`, the target's logits of the action bins at each node's parent, that is
            the distribution of the node's own position. depths: int64 `[B, N]`, the node's action dimension.
        """

    def forced_exact(self, state: AcceptanceState) -> Tensor:
        """Bool `[B, len(forced_reasons)]`: why this action is (in part) decoded exactly whatever the tolerance."""
        return torch.zeros(len(state.repeats), len(self.forced_reasons), dtype=torch.bool, device=state.repeats.device)

    def update(self, state: AcceptanceState, emitted: Tensor, deviation: Tensor, still: Tensor) -> AcceptanceState:
        """The state after an action, all on the host; unchanged by rules that remember nothing.

        emitted: int64 `[B, 7]`, its bins. deviation: int64 `[B, 7]`, emitted minus the target's own choice, in bins.
        still: bool `[B]`, whether the picture is the same as before the previous action.
        """
        return state


def target_choice(logits: Tensor) -> Tensor:
    """The bin of the largest of action logits `[..., 256]`: int64 `[...]`.

    Of equal logits, which bfloat16 often brings about, the highest bin wins, as it has the lowest token id and `argmax`
    over the vocabulary takes the first.
    """
    return logits.shape[-1] - 1 - logits.flip(-1).argmax(dim=-1)
