"""Acceptance by one radius in bins, in two flavours: emit the draft, or the target's own choice.

Knows no units but the side of the gripper, and remembers nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from policy.decoding.acceptance.base import AcceptanceRule, AcceptanceState, Verdict, target_choice
from policy.decoding.acceptance.intervals import Intervals
from policy.decoding.physical import ActionUnits
from policy.decoding.tree import TokenTree
from policy.openvla.config import ACTION_BINS, ACTION_DIMENSIONS


@dataclass(frozen=True, slots=True)
class DistanceSettings:
    """radius: largest accepted distance between draft and target, in bins (2/255 of the normalised range each).

    protect_gripper: refuse a gripper on the other side of open and closed, however near its bin. Without it the gripper
        is one more dimension, as published.
    """

    radius: int = 9
    protect_gripper: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.radius < ACTION_BINS:
            raise ValueError(
                f"radius is {self.radius} bins; it must be 0 (exact) to {ACTION_BINS - 1}; 5 to 9 are published"
            )

    def intervals(self, units: ActionUnits) -> Intervals:
        """Which bins may stand in for which, for the gripper of these units."""
        intervals = Intervals.around(torch.full((ACTION_DIMENSIONS, 1), self.radius))
        return intervals.keeping_gripper_side(units) if self.protect_gripper else intervals


@dataclass(frozen=True, slots=True)
class SpecVLASettings(DistanceSettings):
    """Settings of `SpecVLA`."""

    def build(self, units: ActionUnits, device: torch.device | str) -> AcceptanceRule:
        """The rule on a device."""
        return SpecVLA(self.radius, self.intervals(units).to(device))


@dataclass(frozen=True, slots=True)
class CorrectedSettings(DistanceSettings):
    """Settings of `Corrected`."""

    def build(self, units: ActionUnits, device: torch.device | str) -> AcceptanceRule:
        """The rule on a device."""
        return Corrected(self.radius, self.intervals(units).to(device))


class SpecVLA(AcceptanceRule):
    """A draft stands and is emitted where `|token - argmax(logits)| <= radius` (Spec-VLA: Wang et al. 2025, arXiv
    2507.22424), and by default only if both tokens put the gripper on the same side.

    Unit: bins, so millimetres in one dimension and milliradians in another, and more of either in a data set that moves
    faster. As everywhere here, of equally long paths the one nearest to the target wins; the published code takes the
    first.

    Guarantees that each coordinate lies within `radius` bins of what the target chooses *after the coordinates that
    were emitted before it*. Cannot guarantee closeness to plain decoding of the whole action: a choice may jump when
    what precedes it changes by one bin. Cannot keep errors from adding up over time: a draft that lags behind lags with
    the same sign at every tick. At low speed the radius exceeds the motion itself.
    """

    name = "spec-vla"
    emits_target = False

    def __init__(self, radius: int, intervals: Intervals) -> None:
        self.reach = (radius,) * ACTION_DIMENSIONS
        self._intervals = intervals

    def accept(self, tree: TokenTree, logits_of_parent: Tensor, depths: Tensor, state: AcceptanceState) -> Verdict:
        choice = target_choice(logits_of_parent)
        accepted = self._intervals.contain(tree.tokens, choice, depths)
        return Verdict(accepted, choice if self.emits_target else tree.tokens, (tree.tokens - choice).abs())


class Corrected(SpecVLA):
    """Accepts as `SpecVLA` does, but emits `argmax(logits)`, the target's own choice, at every verified position.

    No draft is ever executed. What is emitted is one iteration of Jacobi decoding (Santilli et al. 2023, arXiv
    2305.10427) from a start that is known to be near.

    Unit: bins, as for `SpecVLA`.

    Guarantees of the coordinates that one pass decides that the first is the target's choice after those emitted before
    it, and so is every further one whose drafted predecessors were exact. Cannot guarantee any bound for the others:
    they are the target's choices after *drafted* predecessors, each up to `radius` bins from the emitted ones, and a
    choice may jump when what precedes it changes. The action as a whole is thus one that nobody proposed: each
    coordinate is the target's, their fit is assumed.
    """

    name = "corrected"
    emits_target = True
