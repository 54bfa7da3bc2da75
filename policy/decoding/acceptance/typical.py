"""Acceptance by probability. Knows no distances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from policy.decoding.acceptance.base import AcceptanceRule, AcceptanceState, Verdict, target_choice
from policy.decoding.physical import GRIPPER, ActionUnits
from policy.decoding.tree import TokenTree
from policy.openvla.config import ACTION_DIMENSIONS


@dataclass(frozen=True, slots=True)
class TypicalSettings:
    """ratio: how probable a draft must be, as a share of the most probable bin's probability.

    protect_gripper: refuse a gripper on the other side of open and closed, however probable.
    """

    ratio: float = 0.5
    protect_gripper: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(
                f"ratio is {self.ratio}; it must be above 0 and at most 1 (the best bin and its equals only)"
            )

    def build(self, units: ActionUnits, device: torch.device | str) -> AcceptanceRule:
        """The rule on a device."""
        opens = torch.from_numpy(units.gripper_opens).to(device)
        return Typical(math.log(self.ratio), opens if self.protect_gripper else torch.zeros_like(opens))


class Typical(AcceptanceRule):
    """A draft stands and is emitted where `p(token) >= ratio * max p`, p being the target's probability; by default
    only if it keeps the gripper's side. (In the manner of Medusa's typical acceptance, Cai et al. 2024, arXiv
    2401.10774, but measured against the best token instead of the entropy.)

    Unit: none. Where the target is sure, next to nothing but its choice stands; where it hesitates, much does.

    Guarantees that no coordinate is executed that the target thinks less probable than `ratio` times its choice, after
    the coordinates emitted before it. Cannot guarantee any distance: of two equally probable ways round an obstacle
    either may stand. As useful as the target is calibrated: an over-confident one makes it the exact rule.
    """

    name = "typical"
    reach = (0,) * ACTION_DIMENSIONS

    def __init__(self, log_ratio: float, gripper_side: Tensor) -> None:
        """gripper_side: bool `[256]`; a gripper token stands only for a choice with an equal entry."""
        self._log_ratio = log_ratio
        self._gripper_side = gripper_side

    def accept(self, tree: TokenTree, logits_of_parent: Tensor, depths: Tensor, state: AcceptanceState) -> Verdict:
        tokens, choice = tree.tokens, target_choice(logits_of_parent)
        drafted = logits_of_parent.gather(-1, tokens[..., None])[..., 0]
        probable = drafted - logits_of_parent.amax(dim=-1) >= self._log_ratio
        kept = (depths != GRIPPER) | (self._gripper_side[tokens] == self._gripper_side[choice])
        return Verdict(probable & kept, tokens, (tokens - choice).abs())
