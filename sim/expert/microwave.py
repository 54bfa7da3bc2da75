"""The open microwave: put a mug into it by its handle, and swing the door shut.

Knows the shape of the microwave, which faces -y, and of the mug with the handle towards the hand; the door's hinge
reads 0 closed and falls to -2.1 rad wide open.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.expert.grasps import Grasp
from sim.expert.pick_and_place import Approach, PutDown
from sim.expert.placement import Placement
from sim.expert.rotations import HAND_DOWN, about_x, about_z, nearest_symmetric
from sim.expert.servo import CLOSE, CRUISE, GAIN, OPEN, Decision, ramp, servo, unit_clip
from sim.expert.state import Goal, SimulatorState

_MICROWAVE = "microwave_1"
_HINGE = f"{_MICROWAVE}_microjoint"
_DOOR = f"{_MICROWAVE}_microdoorroot"  # its origin is at the hinge
_DOOR_HANDLE = f"{_MICROWAVE}_g14"  # collision boxes and capsules are numbered, not named
# From the microwave's origin: height of the floor inside, of the space above a mug there, and of the door's upper edge;
# the opening, along y; and where the mug is put, just inside, because the palm is too wide to follow it.
_FLOOR, _INSIDE, _DOOR_TOP = 0.024, 0.15, 0.1885
_OPENING = -0.088
_PLACE = np.array([-0.028, -0.045])

_MUG_HANDLE = np.array([0.056, 0.0, 0.066])  # where the mug is held, in its own frame
_TILT = np.deg2rad(60)  # of the tool from straight down, so that the fingers reach inside and the palm stays outside
_YAW = np.deg2rad(80)  # not 90, or else it would be open which way round to turn the hand

_LEVER = 0.19  # distance from the hinge at which the door is pushed
_OVERLAP = 0.012  # of the grip site below the door's upper edge: the fingers reach the door, the palm passes above it


@dataclass(frozen=True, slots=True)
class HandleGrasp:
    """Across the handle of a mug, which faces -y, with the tool leaning forwards."""

    name: str

    def __call__(self, state: SimulatorState) -> Grasp:
        position = state.position(self.name) + state.rotation(self.name) @ _MUG_HANDLE
        return Grasp(position, about_x(_TILT) @ about_z(_YAW) @ HAND_DOWN)


@dataclass(frozen=True, slots=True)
class IntoMicrowave:
    """Placement rule: level with the inside, then straight in."""

    name: str

    def __call__(self, state: SimulatorState) -> Placement:
        microwave, bottom = state.position(_MICROWAVE), state.bounds(self.name)[0][2]
        offset = microwave[:2] + _PLACE - state.position(self.name)[:2]
        # Past the edge of a door that stands less than square, soon after the start: the palm would shut it.
        offset[0] += ramp(offset[1], (0.10, 0.20), (0.0, 0.04))
        offset[0] *= ramp(offset[1], (0.10, 0.20), (1.0, 5.0))
        hand_above_bottom = state.hand_position[2] - bottom
        floor = microwave[2] + _FLOOR
        return Placement(
            offset=offset,
            release_height=floor + 0.002 + hand_above_bottom,
            travel_height=floor + 0.018 + hand_above_bottom,
            above_goal=False,  # the goal holds where it is let go; one that stands short of that is picked up again
            near=0.01,
            far=0.03,
            release_radius=0.02,
            blend=0.03,
        )


class MugIntoMicrowave(PutDown):
    """Puts the mug down inside and draws the hand out again."""

    def leave(self, state: SimulatorState) -> Decision | None:
        if self.holding(state):
            return super().leave(state)
        hand, microwave = state.hand_position, state.position(_MICROWAVE)
        if hand[1] < microwave[1] + _OPENING - 0.04 or hand[2] > microwave[2] + _INSIDE:
            return None
        way = 0.05 * unit_clip((state.finger_gap - 0.02) / 0.03)
        return Decision(servo(state, hand - np.array([0.0, way, 0.0]), state.hand_rotation, OPEN), "back out")


class SwingDoorShut:
    """Pushes the microwave's door shut from outside with the closed fingers, the palm above the door."""

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self.focus = _DOOR_HANDLE, _MICROWAVE

    def __call__(self, state: SimulatorState) -> Decision:
        hand, microwave = state.hand_position, state.position(_MICROWAVE)
        hinge = state.position(_DOOR)
        angle = state.joint(_HINGE)
        along = np.array([np.cos(angle), np.sin(angle), 0.0])  # from the hinge to the door's edge
        inward = np.array([-along[1], along[0], 0.0])
        out, lever = float((hinge - hand) @ inward), float((hand - hinge) @ along)
        rotation = nearest_symmetric(about_z(_YAW) @ HAND_DOWN, state.hand_rotation)
        top = microwave[2] + _DOOR_TOP
        low = top - _OVERLAP
        if 0.0 < out < 0.09 and hand[2] < top and abs(lever - _LEVER) < 0.05:
            target = hand + inward * 0.04 + along * (_LEVER - lever)
            target[2] = low
            return Decision(servo(state, target, rotation, CLOSE, gain=GAIN, planar=0.8), "push")
        height = ramp(out, (0.05, 0.07), (top + 0.05, low))
        risen = unit_clip(1.0 - (height - 0.02 - hand[2]) / 0.04)
        target = hinge + along * _LEVER - inward * 0.08
        target[2] = height
        action = servo(state, target, rotation, CLOSE, gain=GAIN, planar=CRUISE * risen + 1e-6, turn=0.8)
        return Decision(action, "go round")

    def holding(self, state: SimulatorState) -> bool:
        """A push holds nothing."""
        return False

    def leave(self, state: SimulatorState) -> Decision | None:
        """Nothing comes after the door is shut."""
        return None


def mug_into_microwave(state: SimulatorState, goal: Goal) -> MugIntoMicrowave:
    """The skill for one mug."""
    approach = Approach(hover=0.06, safe_height=1.05, max_turn=0.9)
    return MugIntoMicrowave(state, goal, HandleGrasp(goal[1]), IntoMicrowave(goal[1]), approach)
