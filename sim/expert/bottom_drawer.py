"""The open bottom drawer of the white cabinet: put a bowl into it, and push it shut.

Knows the cabinet's geometry, which faces -y; the drawer's slide joint reads 0 closed and falls to -0.16 m fully open.
"""

from __future__ import annotations

import numpy as np

from sim.expert.grasps import RimGrasp
from sim.expert.pick_and_place import Approach, PutDown
from sim.expert.placement import Placement
from sim.expert.rotations import HAND_DOWN, about_x, about_z, angle_between, nearest_symmetric
from sim.expert.servo import CRUISE, GAIN, OPEN, Decision, ramp, servo, unit_clip
from sim.expert.state import Goal, SimulatorState

_CABINET = "white_cabinet_1"
_JOINT = f"{_CABINET}_bottom_level"
_BAR = f"{_CABINET}_g40"  # collision box of the drawer's horizontal bar; boxes are numbered, not named
_WALL_TOP = 0.079  # of the drawer's walls above the cabinet's origin
_MIDDLE = 0.090  # of the free part of the open drawer, from the bar's middle towards the cabinet
_SUNK = 0.04  # how deep between the walls the bowl is let go: higher up it might land on its side
# The fingers' axis is almost along the front: the palm would hit the drawers above if it were across. Not quite, or
# else it would be open which way round to turn the hand.
_RIM_ANGLE = np.deg2rad(195)

_TOUCH = 0.022  # of the grip site before the bar's middle when the fingertips touch the bar
_START = 0.055  # from there, where the hand comes down before it pushes
_CLEAR = 0.05  # of the grip site above the drawer's walls on the way there


class IntoOpenDrawer:
    """Placement rule: over the drawer's front wall and into the gap between it and the drawers above."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, state: SimulatorState) -> Placement:
        bottom = state.bounds(self.name)[0][2]
        bar = state.position(_BAR)
        wall_top = state.position(_CABINET)[2] + _WALL_TOP
        hand_above_bottom = state.hand_position[2] - bottom
        offset = np.array([bar[0], bar[1] + _MIDDLE]) - state.position(self.name)[:2]
        return Placement(
            offset=offset,
            release_height=wall_top - _SUNK + hand_above_bottom,
            travel_height=wall_top + 0.03 + hand_above_bottom,
            above_goal=False,  # the goal holds where it is let go; one that rests on the wall is picked up again
            near=0.012,
            far=0.05,
        )


class PushDrawerShut:
    """Pushes the bottom drawer shut with the fingertips against its bar."""

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self.focus = _BAR, _CABINET

    def __call__(self, state: SimulatorState) -> Decision:
        bar, hand = state.position(_BAR), state.hand_position
        # The hand leans back: further as the drawer closes, to keep the palm off the bar above it, and less while it is
        # open, to keep the wrist off what stands on the other side of the table.
        tilt = np.deg2rad(ramp(-state.joint(_JOINT), (0.02, 0.10), (45.0, 25.0)))
        rotation = nearest_symmetric(about_x(tilt) @ about_z(-np.pi / 2) @ HAND_DOWN, state.hand_rotation)
        angle = angle_between(rotation, state.hand_rotation)
        touch = bar[1] - _TOUCH
        before = touch - hand[1]
        if before > -0.01 and hand[2] - bar[2] < 0.02 and abs(hand[0] - bar[0]) < 0.03 and angle < 0.3:
            target = np.array([bar[0], hand[1] + 0.04, bar[2]])
            return Decision(servo(state, target, rotation, OPEN, gain=GAIN, planar=0.9), "push")
        # Down only before the bar, and only with the hand turned.
        high = state.position(_CABINET)[2] + _WALL_TOP + _CLEAR
        height = ramp(before - 0.4 * max(angle - 0.2, 0.0), (0.02, 0.05), (high, bar[2]))
        risen = unit_clip(1.0 - (height - 0.02 - hand[2]) / 0.04)
        target = np.array([bar[0], touch - _START, height])
        action = servo(state, target, rotation, OPEN, gain=GAIN, planar=CRUISE * risen + 1e-6, turn=0.8)
        return Decision(action, "go round")

    def holding(self, state: SimulatorState) -> bool:
        """A push holds nothing."""
        return False

    def leave(self, state: SimulatorState) -> Decision | None:
        """Nothing comes after the drawer is shut."""
        return None


def bowl_into_open_drawer(state: SimulatorState, goal: Goal) -> PutDown:
    """The skill for one bowl."""
    grasp = RimGrasp(goal[1], direction=_RIM_ANGLE)
    approach = Approach(hover=0.07, safe_height=1.06, empty_gap=0.0006, lean=True, max_turn=0.9)
    return PutDown(state, goal, grasp, IntoOpenDrawer(goal[1]), approach)
