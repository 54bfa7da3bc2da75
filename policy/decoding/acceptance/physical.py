"""Acceptance by what a deviation means on the robot, now and summed over time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from policy.decoding.acceptance.base import AcceptanceRule, AcceptanceState, Verdict, target_choice
from policy.decoding.acceptance.intervals import Intervals
from policy.decoding.physical import GRIPPER, ActionUnits
from policy.decoding.tree import TokenTree
from policy.openvla.config import ACTION_BINS, ACTION_DIMENSIONS

# A tolerance of exactly n bins must be n bins, whatever the division rounded to.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class PhysicalSettings:
    """Tolerances per control tick, as commanded motion.

    translation_mm, rotation_mrad: largest deviation of each translation and each rotation component.
    gripper_bins: largest distance of the gripper's bin; its side is kept in any case.
    relative: the deviation of a component is also at most this share of what the target commands for it ...
    floor_bins: ... or so many bins, whichever is more.
    budget_mm, budget_mrad: largest leaky sum of signed deviations of a component; 0 is exact, None sets no limit.
    retained: share of that sum that is left at the next action; 1 never forgets.
    emit: the "draft", so that what is executed is within tolerance and what follows is conditioned on it, or the
        "target"'s own choice, as `Corrected` does; the budget then has nothing to count.
    """

    translation_mm: float = 1.25
    rotation_mrad: float = 2.5
    gripper_bins: int = 60
    relative: float = 0.25
    floor_bins: int = 1
    budget_mm: float | None = 5.0
    budget_mrad: float | None = 10.0
    retained: float = 0.9
    emit: Literal["draft", "target"] = "draft"

    def __post_init__(self) -> None:
        for name in ("translation_mm", "rotation_mrad", "relative"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 (exact) and finite")
        for name in ("budget_mm", "budget_mrad"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be at least 0 (exact) and finite, or null for no limit")
        for name in ("gripper_bins", "floor_bins"):
            if not 0 <= getattr(self, name) < ACTION_BINS:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 to {ACTION_BINS - 1} bins")
        if not 0 <= self.retained <= 1:
            raise ValueError(f"retained is {self.retained}; it must be 0 (forget at once) to 1 (never forget)")
        if self.emit not in ("draft", "target"):
            raise ValueError(f"emit is {self.emit!r}; it must be 'draft' or 'target'")

    def build(self, units: ActionUnits, device: torch.device | str) -> AcceptanceRule:
        """The rule on a device, for these units."""
        return Physical(self, units, device)

    def radii(self, units: ActionUnits) -> np.ndarray:
        """The tolerance in whole bins at full speed, int64 `[7]`."""
        pose = np.floor(units.in_bins(self.translation_mm, self.rotation_mrad) + _ROUNDING)
        return np.append(np.minimum(pose, ACTION_BINS - 1), self.gripper_bins).astype(np.int64)

    def radii_by_choice(self, units: ActionUnits) -> np.ndarray:
        """The tolerance in whole bins for each choice of the target, int64 `[7, 256]`."""
        motion = np.abs(np.arange(ACTION_BINS) - units.zero_bins[:, None])  # in bins
        slow = np.maximum(np.floor(self.relative * motion + _ROUNDING).astype(np.int64), self.floor_bins)
        radii = np.minimum(self.radii(units)[:, None], slow)
        radii[GRIPPER] = self.gripper_bins
        return radii


class Physical(AcceptanceRule):
    """A draft stands where it differs from `c = argmax(logits)` by no more than the robot's task bears.

    With delta = token - c, and z the bin of no motion, all in bins of dimension d:

    - tolerance: `|delta| <= min(floor(tolerance / size), max(floor_bins, floor(relative |c - z|)))`, where size is
      (q99 - q01) / 255 times the controller's scale, in mm or mrad per bin
    - direction: `(token - z) (c - z) >= 0`
    - gripper: within `gripper_bins`, and open for open, closed for closed
    - budget: `|retained e + delta| <= budget / size`, e being the leaky sum of executed deviations up to the last
      action, `e' = retained e + delta`

    Sources: a tolerance that follows the motion as in KERV (arXiv 2603.01581), a bound on summed deviations as in HeiSD
    (arXiv 2603.17573, there over one action), care at low speed as in SP-VLA (arXiv 2506.12723). Units, direction and
    the sum over time are this project's.

    Guarantees, when drafts are emitted, that each coordinate is within tolerance of what the target chooses after the
    coordinates emitted before it, and never against its direction; that the leaky sum of these deviations stays within
    the budget E at every tick, hence their plain sum over any n ticks within
    `E (1 + retained + (1 - retained) (n - 1))`.
    Cannot guarantee closeness to plain decoding of the whole action (a choice may jump when what precedes it changes),
    nor anything of the path that is driven: tolerances are of commanded motion, of which an arm covers a part per tick.
    Emitting the target's choices gives up the first guarantee, see `Corrected`.
    """

    name = "physical"
    forced_reasons = ("budget",)

    def __init__(self, settings: PhysicalSettings, units: ActionUnits, device: torch.device | str) -> None:
        radii = settings.radii(units)
        self.reach = tuple(int(radius) for radius in radii)
        intervals = Intervals.around(torch.from_numpy(settings.radii_by_choice(units)))
        self._intervals = intervals.keeping_gripper_side(units).keeping_sign(units).to(device)
        budget = np.full(ACTION_DIMENSIONS, np.inf)
        if settings.emit == "draft":
            limits = (np.inf if limit is None else limit for limit in (settings.budget_mm, settings.budget_mrad))
            budget[:GRIPPER] = units.in_bins(*limits)
        self._budget = torch.tensor(budget, dtype=torch.float32, device=device)  # [7], bins
        self._radii = torch.from_numpy(radii).to(device)
        self._settings = settings

    def accept(self, tree: TokenTree, logits_of_parent: Tensor, depths: Tensor, state: AcceptanceState) -> Verdict:
        tokens, choice = tree.tokens, target_choice(logits_of_parent)
        deviation = tokens - choice
        summed = (self._settings.retained * state.signed_error).gather(1, depths) + deviation
        accepted = self._intervals.contain(tokens, choice, depths)
        accepted &= summed.abs() <= self._budget[depths]
        emitted = tokens if self._settings.emit == "draft" else choice
        return Verdict(accepted | (deviation == 0), emitted, deviation.abs())

    def forced_exact(self, state: AcceptanceState) -> Tensor:
        """Bool `[B, 1]`. "budget": in some dimension with a tolerance, no further bin in the sum's direction fits."""
        summed = self._settings.retained * state.signed_error
        exhausted = (summed.abs() + 1 > self._budget) & (self._radii > 0)
        return exhausted.any(dim=1, keepdim=True)

    def update(self, state: AcceptanceState, emitted: Tensor, deviation: Tensor, still: Tensor) -> AcceptanceState:
        return replace(state, signed_error=self._settings.retained * state.signed_error + deviation)
