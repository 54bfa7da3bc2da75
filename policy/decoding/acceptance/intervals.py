"""Which bins may stand in for which: one interval per action dimension and choice of the target.

All that a rule by distance demands regardless of history (radius, sign, side of the gripper) narrows intervals when the
rule is made, so that judging a node is one look into a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from policy.decoding.physical import GRIPPER, ActionUnits
from policy.openvla.config import ACTION_BINS, ACTION_DIMENSIONS

_BINS = torch.arange(ACTION_BINS)


@dataclass(frozen=True, slots=True)
class Intervals:
    """lowest, highest: int64 `[7, 256]`, by dimension and the target's choice; both ends may stand."""

    lowest: Tensor
    highest: Tensor

    @classmethod
    def around(cls, radii: Tensor) -> Intervals:
        """Up to `radii` bins off, int64 `[7, 256]` by dimension and choice, or `[7, 1]` for all choices alike."""
        shape = (ACTION_DIMENSIONS, ACTION_BINS)
        return cls((_BINS - radii).clamp(min=0).expand(shape), (_BINS + radii).clamp(max=ACTION_BINS - 1).expand(shape))

    def keeping_gripper_side(self, units: ActionUnits) -> Intervals:
        """A gripper that the target opens is not closed, nor the other way round."""
        lowest, highest = self.lowest.clone(), self.highest.clone()
        first_open = int(
            (~units.gripper_opens).sum()
        )  # values rise with the bin, so the lower bins are the closed ones
        lowest[GRIPPER, first_open:] = lowest[GRIPPER, first_open:].clamp(min=first_open)
        highest[GRIPPER, :first_open] = highest[GRIPPER, :first_open].clamp(max=first_open - 1)
        return Intervals(lowest, highest)

    def keeping_sign(self, units: ActionUnits) -> Intervals:
        """No pose component changes its direction; the bin that commands least motion goes with both."""
        zeros = torch.from_numpy(units.zero_bins)[:, None]  # [7, 1]
        lowest = torch.where(zeros < _BINS, self.lowest.maximum(zeros), self.lowest)
        highest = torch.where(zeros > _BINS, self.highest.minimum(zeros), self.highest)
        lowest[GRIPPER], highest[GRIPPER] = self.lowest[GRIPPER], self.highest[GRIPPER]
        return Intervals(lowest, highest)

    def to(self, device: torch.device | str) -> Intervals:
        return Intervals(self.lowest.to(device), self.highest.to(device))

    def contain(self, tokens: Tensor, choice: Tensor, depths: Tensor) -> Tensor:
        """Whether `tokens` may stand where the target chooses `choice` in dimension `depths`; all `[B, N]`."""
        return (tokens >= self.lowest[depths, choice]) & (tokens <= self.highest[depths, choice])
