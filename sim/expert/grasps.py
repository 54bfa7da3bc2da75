"""Where to take hold of things: from above around the middle, at the rim of a bowl or mug, or by the knob of a lid.

A grasp is a function of the present state, so it follows an object that was pushed.
Knows the shape of the Panda's gripper; knows nothing of how the hand gets there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sim.expert.rotations import HAND_DOWN, about_x, about_z, angle_between, nearest_symmetric
from sim.expert.servo import above
from sim.expert.state import SimulatorState

# The open gripper as three boxes, two fingers and the palm, in the grip frame (x: the fingers' travel, z: the tool).
_GRIPPER_LOW = np.array([[-0.0651, -0.0105, -0.2], [0.0386, -0.0105, -0.2], [-0.104, -0.0316, -0.2]])
_GRIPPER_HIGH = np.array([[-0.0386, 0.0105, 0.0092], [0.0651, 0.0105, 0.0092], [0.104, 0.0316, -0.031]])
_TURNS = np.deg2rad([30.0, -30.0, 60.0, -60.0, 90.0])  # of the fingers, where neighbours leave no room along world y
_WIDEST = 0.074  # of what the open fingers, 79 mm apart, are sent around
_CLEAR = 0.006  # beyond this separation more room buys nothing
# Separations down to which neighbours are brushed past as if they were not there, and pushed aside if nothing else will
# do: fingers are turned only below the second, as no camera sees the millimetre by which straight ones fit.
_BRUSHING, _BLOCKED = -0.002, -0.010
_ELSEWHERE = 0.03  # beyond this distance from every grasp the first is taken
_PREFERENCE = 0.008  # by which another grasp has to be nearer than the first
_FINGER_LEVER = 0.06  # metres that a radian counts

# The middle of the rim, in the frame of the thing.
BOWL_RIM = (0.0, 0.0, 0.0525)
_LID_KNOB = np.array([0.0, -0.0014, 0.078])  # of a moka pot: the grip site, with the fingertips just above the lid
MUG_RIMS = {"porcelain_mug_1": (0.0124, -0.001, 0.1085), "white_yellow_mug_1": (-0.0186, 0.0, 0.1031)}


@dataclass(frozen=True, slots=True)
class Grasp:
    """A pose of the grip site: position `[3]` and axes `[3, 3]`."""

    position: np.ndarray
    rotation: np.ndarray


GraspRule = Callable[[SimulatorState], Grasp]


@dataclass(frozen=True, slots=True)
class TopGrasp:
    """Straight from above around the middle of an object, the fingers closing along world y if they fit around it.

    An object that fell over or was turned is taken across its narrowest width instead.
    depth: how far below the object's top the grip site goes. floor: height the grip site never goes below.
    slide: shift from the middle along the other horizontal axis, for neighbours that stand in the palm's way.
    turn: of the fingers from world y, radians, for neighbours that stand in a finger's way.
    """

    name: str
    depth: float
    floor: float
    slide: float = 0.0
    turn: float = 0.0

    def __call__(self, state: SimulatorState) -> Grasp:
        low, high = state.bounds(self.name)
        x, y = (low[:2] + high[:2]) / 2
        # The fingertips reach 9 mm below the grip site: 12 mm above the object's bottom keeps them off its support.
        height = max(high[2] - self.depth, self.floor, low[2] + 0.012)
        if high[1] - low[1] < _WIDEST:
            return Grasp(np.array([x + self.slide, y, height]), about_z(self.turn) @ HAND_DOWN)
        turn = _narrowest(state.corners(self.name).reshape(-1, 3)[:, :2])
        return Grasp(np.array([x, y, height]), about_z(turn) @ HAND_DOWN)


def _narrowest(points: np.ndarray) -> float:
    """Angle from world y, in -pi/2..pi/2, of the direction in which the horizontal points `[N, 2]` are spread least."""
    angles = np.linspace(-np.pi / 2, np.pi / 2, 24, endpoint=False)
    return float(angles[np.argmin(_widths(points, angles))])


def _widths(points: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Spread `[A]` of the horizontal points `[N, 2]` along each of the angles `[A]` from world y."""
    return np.ptp(points @ np.stack([-np.sin(angles), np.cos(angles)]), axis=0)


@dataclass(frozen=True, slots=True)
class RimGrasp:
    """One finger inside a bowl or mug and one outside.

    direction: world angle (radians) from the rim's middle to the point of the rim, which is also the fingers' axis.
    radius, depth: of the grip site from the middle's axis and below the rim. tilt: of the hand about the fingers' axis.
    middle: of the rim, in the frame of the thing.
    """

    name: str
    direction: float = np.pi / 2
    radius: float = 0.043
    depth: float = 0.014
    tilt: float = 0.0
    middle: tuple[float, float, float] = BOWL_RIM

    def __call__(self, state: SimulatorState) -> Grasp:
        axes = state.rotation(self.name)
        axis = axes[:, 2]
        outward = np.array([np.cos(self.direction), np.sin(self.direction), 0.0])
        # Into the plane of the rim, which is tilted where the bowl rests on another dish.
        outward -= axis * (axis @ outward)
        outward /= np.linalg.norm(outward)
        rim = state.position(self.name) + axes @ self.middle + outward * self.radius
        turned = about_z(self.direction - np.pi / 2) @ about_x(-self.tilt) @ HAND_DOWN
        return Grasp(above(rim, -self.depth), turned)


@dataclass(frozen=True, slots=True)
class LidGrasp:
    """By the knob on the lid of a moka pot, between the handle and the spout.

    The fingers are turned by 45 degrees from the camera's line of sight: along it their closing cannot be seen, and who
    learns from pictures then rests at the pot, which is right while they close, for ever.
    """

    name: str

    def __call__(self, state: SimulatorState) -> Grasp:
        knob = state.position(self.name) + state.rotation(self.name) @ _LID_KNOB
        return Grasp(knob, about_z(np.pi / 4) @ HAND_DOWN)


def clearance(state: SimulatorState, name: str, grasp: Grasp) -> float:
    """Least separation in metres between the open gripper at `grasp` and any box of any other object, at most `_CLEAR`.

    Separation is the largest gap along the three axes of the grip frame: a lower bound, exact for aligned boxes.
    """
    least = _CLEAR
    for other in state.objects:
        corners = state.corners(other)
        if other == name or not len(corners):
            continue
        local = (corners - grasp.position) @ grasp.rotation
        low, high = local.min(1)[:, None], local.max(1)[:, None]
        separation = np.maximum(low - _GRIPPER_HIGH, _GRIPPER_LOW - high).max(2)  # [boxes, gripper parts]
        least = min(least, float(separation.min()))
    return least


@dataclass(frozen=True, slots=True)
class NearestGrasp:
    """The first of several grasps of one object, unless the hand is already at another.

    All of them will do, and a camera cannot see which has a millimetre more room, so who learns from pictures may well
    be at another one than the first; it is then the better one.
    """

    choices: tuple[TopGrasp, ...]

    def __call__(self, state: SimulatorState) -> Grasp:
        grasps = [choice(state) for choice in self.choices]
        away = [min(_apart(state, grasp), _ELSEWHERE) for grasp in grasps]
        away[0] -= _PREFERENCE
        return grasps[int(np.argmin(away))]


def _apart(state: SimulatorState, grasp: Grasp) -> float:
    """How far the hand is from `grasp`: metres beside it, radians counted by the length of a fingertip's way."""
    angle = angle_between(nearest_symmetric(grasp.rotation, state.hand_rotation), state.hand_rotation)
    return float(np.hypot(np.hypot(*(state.hand_position - grasp.position)[:2]), angle * _FINGER_LEVER))


def clear_top_grasp(state: SimulatorState, name: str, depth: float, floor: float) -> NearestGrasp:
    """The top grasps at which palm and fingers clear the neighbours, those nearest to the object's middle first.

    Fingers are turned only where a neighbour stands in the way of straight ones wherever the hand is shifted.
    """
    low, high = state.bounds(name)
    furthest = max((high[0] - low[0]) / 2 - 0.014, 0.0)  # both fingers stay on the object
    shifts = [s for s in (0.0, 0.008, -0.008, 0.014, -0.014, 0.02, -0.02, 0.026, -0.026) if abs(s) <= furthest]
    points = state.corners(name).reshape(-1, 3)[:, :2]
    turns = _TURNS[_widths(points, _TURNS) < _WIDEST]
    straight = [TopGrasp(name, depth, floor, shift) for shift in shifts]
    grasps = [*straight, *(TopGrasp(name, depth, floor, turn=float(turn)) for turn in turns)]
    room = {grasp: round(clearance(state, name, grasp(state)), 4) for grasp in grasps}  # 0.1 mm is no reason to move
    best = max(straight, key=lambda grasp: room[grasp])  # the first of equals, which is the one nearest to the middle
    if room[best] < _BLOCKED:
        best = max(grasps, key=lambda grasp: room[grasp])
    first = next((grasp for grasp in straight if room[grasp] >= _BRUSHING), best)
    others = [grasp for grasp in grasps if grasp != first and room[grasp] >= min(_BLOCKED, room[first])]
    return NearestGrasp((first, *others))
