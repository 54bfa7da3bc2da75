"""Push the plate to the front of the stove: the open fingers, pressed on it inside its rim, slide it over the table.

The way leads past the cream cheese, which stands between the plate and its goal.
"""

from __future__ import annotations

import numpy as np

from sim.expert.rotations import HAND_DOWN, about_z, angle_between, nearest_symmetric
from sim.expert.servo import GAIN, OPEN, Decision, above, ramp, servo
from sim.expert.state import Goal, SimulatorState

_TIP_HEIGHT = 0.017  # of the grip site above the plate's origin, with the fingertips just on the plate
_PRESS = 0.005  # how far below that the hand is asked to go; with 12 mm the plate sticks to the table
_LEAD = 0.023  # how far ahead of itself the hand is asked to go
_LANE_X = 0.065  # the free lane past the cheese


class SlidePlate:
    """Slides the object that `goal`, `("on", object, region)`, names to the region that it names."""

    def __init__(self, state: SimulatorState, goal: Goal) -> None:
        self.goal = goal
        _, self.name, region = goal
        self._end = state.position(region)[:2] + 0.01

    def _direction(self, plate: np.ndarray) -> np.ndarray:
        """Horizontal unit vector `[2]` to push along: first +y down the free lane, then towards the goal."""
        lane = np.array([_LANE_X - plate[0], 0.12])
        rest = self._end - plate[:2]
        share = ramp(plate[1], (0.13, 0.20), (0.0, 1.0))
        blended = (1 - share) * lane / np.linalg.norm(lane) + share * rest / max(float(np.linalg.norm(rest)), 1e-6)
        return blended / np.linalg.norm(blended)

    def __call__(self, state: SimulatorState) -> Decision:
        plate, hand = state.position(self.name), state.hand_position
        push = self._direction(plate)
        heading = np.clip(np.arctan2(push[1], push[0]), np.deg2rad(70), np.deg2rad(175))
        rotation = nearest_symmetric(about_z(heading - np.pi / 2) @ HAND_DOWN, state.hand_rotation)
        if state.holds(self.goal):
            return Decision(servo(state, above(hand, 0.05), rotation, OPEN, vertical=0.5), "done")
        touch = above(plate, _TIP_HEIGHT)
        lateral = float(np.hypot(*(hand - touch)[:2]))
        if lateral < 0.024 and hand[2] < touch[2] + 0.012:
            target = np.array([*(hand[:2] + push * _LEAD), touch[2] - _PRESS])
            action = servo(state, target, rotation, OPEN, gain=GAIN, planar=0.7, vertical=0.6, turn=0.4)
            return Decision(action, "slide")
        misaligned = max(0.0, angle_between(rotation, state.hand_rotation) - 0.3)
        height = ramp(lateral + 0.05 * misaligned, (0.010, 0.03, 0.12), (-0.005, 0.05, 0.08))
        return Decision(servo(state, above(touch, height), rotation, OPEN, gain=GAIN), "reach")
