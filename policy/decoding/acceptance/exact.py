"""Exact acceptance. Knows no tolerance and remembers nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from policy.decoding.acceptance.base import AcceptanceState, Verdict
from policy.decoding.tree import TokenTree
from policy.openvla.config import ACTION_DIMENSIONS


@dataclass(frozen=True, slots=True)
class Exact:
    """A draft stands where it is the target's own choice: `token == argmax(logits)` (Leviathan et al. 2023, greedy).

    Guarantees the tokens of plain greedy decoding, up to how the arithmetic of passes of different shapes rounds.
    """

    name: ClassVar[str] = "exact"
    reach: ClassVar[tuple[int, ...]] = (0,) * ACTION_DIMENSIONS
    forced_reasons: ClassVar[tuple[str, ...]] = ()

    def accept(self, tree: TokenTree, logits_of_parent: Tensor, depths: Tensor, state: AcceptanceState) -> Verdict:
        choice = logits_of_parent.argmax(dim=-1)
        distance = (tree.tokens - choice).abs()
        return Verdict(distance == 0, choice, distance)

    def forced_exact(self, state: AcceptanceState) -> Tensor:
        return torch.zeros(len(state.repeats), 0, dtype=torch.bool, device=state.repeats.device)

    def update(self, state: AcceptanceState, emitted: Tensor, deviation: Tensor, still: Tensor) -> AcceptanceState:
        return state
