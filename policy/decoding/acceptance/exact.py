"""Exact acceptance. Knows no tolerance and remembers nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from policy.decoding.acceptance.base import AcceptanceRule, AcceptanceState, Verdict, target_choice
from policy.decoding.physical import ActionUnits
from policy.decoding.tree import TokenTree
from policy.openvla.config import ACTION_DIMENSIONS


@dataclass(frozen=True, slots=True)
class ExactSettings:
    """Exact acceptance has nothing to set."""

    def build(self, units: ActionUnits, device: torch.device | str) -> AcceptanceRule:
        """The rule; it needs no units."""
        return Exact()


class Exact(AcceptanceRule):
    """A draft stands where it is the target's own choice: `token = argmax(logits)` (Leviathan et al. 2023, "Fast
    Inference from Transformers via Speculative Decoding", for greedy decoding).

    Guarantees the tokens of plain greedy decoding, up to how passes of different shapes round. Cannot guarantee
    equality bit by bit in bfloat16, where such rounding turns near-ties.
    """

    name = "exact"
    reach = (0,) * ACTION_DIMENSIONS

    def accept(self, tree: TokenTree, logits_of_parent: Tensor, depths: Tensor, state: AcceptanceState) -> Verdict:
        choice = target_choice(logits_of_parent)
        distance = (tree.tokens - choice).abs()
        return Verdict(distance == 0, choice, distance)
