"""Turn the stove on: grip the ridge of its knob and twist."""

from __future__ import annotations

import numpy as np

from sim.expert.rotations import HAND_DOWN, about_z, nearest_symmetric
from sim.expert.servo import CLOSE, CREEP, CRUISE, GAIN, OPEN, Decision, above, ramp, servo, unit_clip
from sim.expert.state import Goal, SimulatorState

_RIDGE_HEIGHT = 0.036  # of the grasp above the knob's origin
_GRIPPED, _FREE = 0.03, 0.05  # gaps at which the fingers still hold the ridge, and have let go of it
_LEAD = 0.45  # radians by which the hand's target runs ahead of the hand, counter-clockwise


class Knob:
    """Twists the knob of the stove that `goal`, `("turnon", stove)`, names until it is on."""

    def __init__(self, state: SimulatorState, goal: Goal) -> None:
        self.goal = goal
        self._knob = f"{goal[1]}_button"
        self.focus = self._knob, self._knob

    def __call__(self, state: SimulatorState) -> Decision:
        hand, gap = state.hand_position, state.finger_gap
        if state.holds(self.goal):
            return self._let_go(state)
        grasp = self._grasp(state)
        # Twist ahead of the knob as the fingers close around its ridge, which is 26 mm wide.
        twist = _LEAD * unit_clip((0.042 - gap) / 0.012) if self.holding(state) else 0.0
        rotation = nearest_symmetric(about_z(state.joint(self._knob) + twist) @ HAND_DOWN, state.hand_rotation)
        lateral, height_error = float(np.hypot(*(hand - grasp)[:2])), float(hand[2] - grasp[2])
        ready = lateral < 0.010 and abs(height_error) < 0.010
        if ready or self.holding(state):
            action = servo(state, grasp, rotation, CLOSE, planar=0.3, vertical=0.3, turn=0.9)
            return Decision(action, "twist" if twist > 0 else "close")
        height = ramp(lateral, (0.008, 0.03, 0.12), (0.0, 0.05, 0.09))
        if gap < 0.07:
            height = max(height, 0.05)
        planar = unit_clip(1.0 - (height - 0.015 - height_error) / 0.04) if height_error <= height - 0.015 else 1.0
        action = servo(state, above(grasp, height), rotation, OPEN, gain=GAIN, planar=CRUISE * planar + 1e-6)
        return Decision(action, "reach")

    def holding(self, state: SimulatorState) -> bool:
        """Whether the fingers are closing around the knob, or have closed."""
        way = state.hand_position - self._grasp(state)
        return 0.004 < state.finger_gap < 0.075 and bool(np.hypot(*way[:2]) < 0.03 and abs(way[2]) < 0.025)

    def leave(self, state: SimulatorState) -> Decision | None:
        """Let go and rise; None once the fingers are above the knob."""
        way = state.hand_position - self._grasp(state)
        return self._let_go(state) if np.hypot(*way[:2]) < 0.03 and way[2] < 0.03 else None

    def _grasp(self, state: SimulatorState) -> np.ndarray:
        return above(state.position(self._knob), _RIDGE_HEIGHT)

    def _let_go(self, state: SimulatorState) -> Decision:
        target = above(state.hand_position, ramp(state.finger_gap, (_GRIPPED, _FREE), (CREEP, 0.05)))
        return Decision(servo(state, target, state.hand_rotation, OPEN, vertical=0.5), "done")
