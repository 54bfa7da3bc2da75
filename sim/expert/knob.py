"""Turn the stove on: grip the ridge of its knob and twist."""

from __future__ import annotations

import numpy as np

from sim.expert.rotations import HAND_DOWN, about_z, nearest_symmetric
from sim.expert.servo import CLOSE, CRUISE, GAIN, OPEN, Decision, above, ramp, servo, unit_clip
from sim.expert.state import SimulatorState

_RIDGE_HEIGHT = 0.036  # of the grasp above the knob's origin
_LEAD = 0.45  # radians by which the hand's target runs ahead of the hand, counter-clockwise


class Knob:
    """Twists the knob of the stove called `stove` until the task's goal holds."""

    def __init__(self, state: SimulatorState, stove: str) -> None:
        self._knob = f"{stove}_button"
        self._geoms = state.geoms_of_body(self._knob)

    def __call__(self, state: SimulatorState) -> Decision:
        hand, gap = state.hand_position, state.finger_gap
        if state.succeeded():
            target = above(hand, 0.05 if gap > 0.05 else 0.0)
            return Decision(servo(state, target, state.hand_rotation, OPEN, vertical=0.5), "done")
        grasp = above(state.position(self._knob), _RIDGE_HEIGHT)
        rotation = nearest_symmetric(about_z(state.joint(self._knob)) @ HAND_DOWN, state.hand_rotation)
        lateral, height_error = float(np.hypot(*(hand - grasp)[:2])), float(hand[2] - grasp[2])
        if gap < 0.06 and all(state.finger_contacts(self._geoms)):
            # Twist as the grip firms up.
            twist = _LEAD * unit_clip((0.035 - gap) / 0.008, 0.1)
            action = servo(
                state, grasp, about_z(twist) @ state.hand_rotation, CLOSE, planar=0.3, vertical=0.3, turn=0.9
            )
            return Decision(action, "twist")
        ready = lateral < 0.010 and abs(height_error) < 0.010
        if ready or (0.004 < gap < 0.075 and lateral < 0.03 and abs(height_error) < 0.025):
            return Decision(servo(state, grasp, rotation, CLOSE, planar=0.3, vertical=0.3), "close")
        height = ramp(lateral, (0.008, 0.03, 0.12), (0.0, 0.05, 0.09))
        if gap < 0.07:
            height = max(height, 0.05)
        planar = unit_clip(1.0 - (height - 0.015 - height_error) / 0.04) if height_error <= height - 0.015 else 1.0
        action = servo(state, above(grasp, height), rotation, OPEN, gain=GAIN, planar=CRUISE * planar + 1e-6)
        return Decision(action, "reach")
