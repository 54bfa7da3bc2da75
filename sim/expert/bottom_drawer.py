"""The open bottom drawer of the white cabinet: put a bowl into it, and push it shut.

Knows the cabinet's geometry, which faces -y; the drawer's slide joint reads 0 closed and falls to -0.16 m fully open.
"""

from __future__ import annotations

import numpy as np

from sim.expert.grasps import RimGrasp
from sim.expert.pick_and_place import Approach, PickAndPlace
from sim.expert.placement import Placement
from sim.expert.rotations import HAND_DOWN, about_x, about_z, angle_between, nearest_symmetric
from sim.expert.servo import CRUISE, GAIN, OPEN, Decision, ramp, servo, unit_clip
from sim.expert.state import Goal, SimulatorState

_CABINET = "white_cabinet_1"
_DRAWER = f"{_CABINET}_cabinet_bottom"
_JOINT = f"{_CABINET}_bottom_level"
_BAR = f"{_CABINET}_g40"  # collision box of the drawer's horizontal bar; boxes are numbered, not named
_BAR_FRONT = 0.0077  # of the bar before its middle
_WALL_TOP = 0.079  # of the drawer's walls above the cabinet's origin
_ABOVE_WALL = 0.03
_MIDDLE = 0.090  # of the free part of the drawer, from the bar's middle towards the cabinet
_RIM_AROUND = np.deg2rad(195)


class IntoOpenDrawer:
    """Placement rule: over the drawer's front wall and into the gap between it and the drawers above."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, state: SimulatorState) -> Placement:
        bottom = state.bounds(self.name)[0][2]
        bar = state.geom_position(_BAR)
        wall_top = state.position(_CABINET)[2] + _WALL_TOP
        hand_above_bottom = state.hand_position[2] - bottom
        offset = np.array([bar[0], bar[1] + _MIDDLE]) - state.position(self.name)[:2]
        distance = float(np.hypot(*offset))
        return Placement(
            offset=offset,
            release_height=wall_top - 0.04 + hand_above_bottom,
            travel_height=wall_top + _ABOVE_WALL + hand_above_bottom,
            above_goal=distance < 0.05 and bottom < wall_top,
            near=0.012,
            far=0.05,
        )


class BowlIntoOpenDrawer(PickAndPlace):
    """Puts the bowl down in the drawer.

    The goal holds as soon as the bowl is between the walls; let go there, it might come to rest on its side.
    """

    def leave(self, state: SimulatorState) -> Decision | None:
        if self.holding(state):
            return self._carry(state, self._reachable_grasp(state), self.placement(state))
        return super().leave(state)


class PushDrawerShut:
    """Pushes the bottom drawer shut with the fingertips against its bar."""

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self.focus = _DRAWER, _CABINET

    def __call__(self, state: SimulatorState) -> Decision:
        bar, hand = state.geom_position(_BAR), state.hand_position
        # The hand leans back: further as the drawer closes, to keep the palm off the bar above it, and less while it is
        # open, to keep the wrist off what stands on the other side of the table.
        opening = -state.joint(_JOINT)
        tilt = np.deg2rad(ramp(opening, (0.02, 0.10), (45.0, 25.0)))
        rotation = nearest_symmetric(about_x(tilt) @ about_z(-np.pi / 2) @ HAND_DOWN, state.hand_rotation)
        angle = angle_between(rotation, state.hand_rotation)
        front = bar[1] - _BAR_FRONT - 0.014
        before = front - hand[1]
        low = hand[2] - bar[2]
        if before > -0.01 and low < 0.02 and abs(hand[0] - bar[0]) < 0.03 and angle < 0.3:
            target = np.array([bar[0], hand[1] + 0.04, bar[2]])
            return Decision(servo(state, target, rotation, OPEN, gain=GAIN, planar=0.9), "push")
        clear = state.position(_CABINET)[2] + _WALL_TOP + 0.05
        height = ramp(before - 0.4 * max(angle - 0.2, 0), (0.02, 0.05), (clear, bar[2]))
        slack = unit_clip(1.0 - (height - 0.02 - hand[2]) / 0.04)
        target = np.array([bar[0], front - 0.055, height])
        action = servo(state, target, rotation, OPEN, gain=GAIN, planar=CRUISE * slack + 1e-6, turn=0.8)
        return Decision(action, "go round")

    def holding(self, state: SimulatorState) -> bool:
        """A push holds nothing."""
        return False

    def leave(self, state: SimulatorState) -> Decision | None:
        """Nothing comes after the drawer is shut."""
        return None


def bowl_into_open_drawer(state: SimulatorState, goal: Goal) -> PickAndPlace:
    grasp = RimGrasp(goal[1], direction=_RIM_AROUND)
    approach = Approach(hover=0.07, safe_height=1.06, empty_gap=0.0006, lean=True, max_turn=0.9)
    return BowlIntoOpenDrawer(state, goal, grasp, IntoOpenDrawer(goal[1]), approach)
