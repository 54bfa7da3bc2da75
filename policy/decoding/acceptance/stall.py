"""A guard for any tolerant rule: where the robot stands still and repeats itself, nothing is tolerated.

Knows nothing of what the rule tolerates, but how far apart two actions may lie that are one to it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from policy.decoding.acceptance.base import AcceptanceRule, AcceptanceState, Verdict
from policy.decoding.tree import TokenTree


def check_stall_actions(stall_actions: int) -> None:
    """Raises ValueError for a number of repetitions that is none."""
    if stall_actions < 1:
        raise ValueError(f"stall_actions is {stall_actions}; it must be at least 1 repetition, or null for no guard")


class StallGuard(AcceptanceRule):
    """After `stall_actions` actions in a row that each repeated the one before on an unchanged picture, only drafts
    stand that are the target's own choice, until picture or action changes. An action repeats another one where all its
    coordinates lie within the rule's reach of it, for so far the rule takes one for the other.

    Drafts come from earlier actions, so a tolerant rule can confirm a robot's standing still by its standing still.
    Guarantees that no stall goes on because a draft repeated it. Cannot end one that the target itself wants.
    This project's own.
    """

    def __init__(self, rule: AcceptanceRule, stall_actions: int) -> None:
        """Raises ValueError as `check_stall_actions` does."""
        check_stall_actions(stall_actions)
        self.name, self.reach = rule.name, rule.reach
        self.forced_reasons = (*rule.forced_reasons, "stall")
        self._rule, self._stall_actions = rule, stall_actions
        self._apart = torch.tensor(rule.reach)

    def accept(self, tree: TokenTree, logits_of_parent: Tensor, depths: Tensor, state: AcceptanceState) -> Verdict:
        verdict = self._rule.accept(tree, logits_of_parent, depths, state)
        tolerated = verdict.accepted & ~self._stalled(state)[:, None]
        return replace(verdict, accepted=tolerated | (verdict.distance == 0))

    def forced_exact(self, state: AcceptanceState) -> Tensor:
        return torch.cat([self._rule.forced_exact(state), self._stalled(state)[:, None]], dim=1)

    def update(self, state: AcceptanceState, emitted: Tensor, deviation: Tensor, still: Tensor) -> AcceptanceState:
        repeated = still & ((emitted - state.previous).abs() <= self._apart).all(dim=1)
        after = self._rule.update(state, emitted, deviation, still)
        return replace(after, previous=emitted, repeats=torch.where(repeated, state.repeats + 1, 0))

    def _stalled(self, state: AcceptanceState) -> Tensor:
        return state.repeats >= self._stall_actions
