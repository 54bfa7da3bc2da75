"""The acceptance rules once more, one node at a time, in plain Python and physical units, from their descriptions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from policy.decoding.acceptance.distance import DistanceSettings
from policy.decoding.acceptance.physical import PhysicalSettings

# Sizes and tolerances are irregular numbers in these tests, so this only covers rounding.
TINY = 1e-6


@dataclass(frozen=True)
class Robot:
    """Statistics of a data set as lists, and what the controller makes of 1 in each dimension."""

    q01: Sequence[float]
    q99: Sequence[float]
    scale: Sequence[float] = (50, 50, 50, 500, 500, 500)

    def motion(self, dimension: int, bin_index: int) -> float:
        """Millimetres, milliradians or the gripper's value."""
        center = -1 + (2 * min(bin_index, 254) + 1) / 255
        if dimension == 6:
            return center
        low, high = self.q01[dimension], self.q99[dimension]
        return (low + (center + 1) / 2 * (high - low)) * self.scale[dimension]

    def size(self, dimension: int) -> float:
        return (self.q99[dimension] - self.q01[dimension]) / 255 * self.scale[dimension]

    def rest(self, dimension: int) -> int:
        """The bin that moves least, the first of equals."""
        return min(range(256), key=lambda candidate: abs(self.motion(dimension, candidate)))

    def same_side(self, one: int, other: int) -> bool:
        return (self.motion(6, one) > 0.5) == (self.motion(6, other) > 0.5)


def best_bin(logits: Sequence[float]) -> int:
    """The bin of the largest logit; the highest of equals."""
    best = 255
    for candidate in range(254, -1, -1):
        if logits[candidate] > logits[best]:
            best = candidate
    return best


def within_distance(settings: DistanceSettings, robot: Robot, dimension: int, token: int, choice: int) -> bool:
    if abs(token - choice) > settings.radius:
        return False
    return dimension != 6 or not settings.protect_gripper or robot.same_side(token, choice)


def is_typical(ratio: float, robot: Robot, dimension: int, token: int, logits: Sequence[float]) -> bool:
    choice = best_bin(logits)
    total = sum(math.exp(logit - logits[choice]) for logit in logits)
    share = math.exp(logits[token] - logits[choice]) / total
    return share >= ratio / total and (dimension != 6 or robot.same_side(token, choice))


def is_physically_harmless(
    settings: PhysicalSettings, robot: Robot, dimension: int, token: int, choice: int, error: float
) -> bool:
    """error: the state's signed error of this dimension, in bins."""
    delta = token - choice
    if delta == 0:
        return True
    if dimension == 6:
        return abs(delta) <= settings.gripper_bins and robot.same_side(token, choice)
    size, rest = robot.size(dimension), robot.rest(dimension)
    tolerance = settings.translation_mm if dimension < 3 else settings.rotation_mrad
    budget = settings.budget_mm if dimension < 3 else settings.budget_mrad
    if tolerance == 0 or abs(delta) * size > tolerance + TINY:
        return False
    if abs(delta) > max(settings.floor_bins, settings.relative * abs(choice - rest) + TINY):
        return False
    if (token - rest) * (choice - rest) < 0:
        return False
    if settings.emit == "target" or budget is None:
        return True
    return abs(settings.retained * error + delta) * size <= budget + TINY
