"""From a desired hand pose to one LIBERO action: a proportional law with caps that keep straight lines straight.

Knows the scale of LIBERO's controller (robosuite's OSC_POSE); knows nothing of objects or tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.expert.rotations import about_y, rotation_vector
from sim.expert.state import SimulatorState

OPEN, CLOSE = -1.0, 1.0  # the gripper value of a raw LIBERO action
METRES_PER_STEP = 0.05  # what an action of 1 asks of the controller along each axis
RADIANS_PER_STEP = 0.5
TURN_GAIN = 1.5
CRUISE = 0.95  # just inside the action's limits, so that the quantiles of the demonstrations stay inside too
# 1.7 overshoots by about a centimetre at full speed and is only for short moves with little to lose.
GAIN, BRISK_GAIN = 1.4, 1.7
# Metres ahead of the hand at which it aims while fingers close or open: who imitates a pause may stay in it for ever,
# as nothing in the next picture tells it from the last.
CREEP = 0.0006


@dataclass(frozen=True, slots=True)
class Decision:
    """What the expert wants now.

    action: float64 `[7]`, a raw LIBERO action: dx, dy, dz, droll, dpitch, dyaw in -1..1, gripper (-1 open, +1 close).
    phase: name of the part of the task, for logs only; nothing is decided by it.
    focus: names of the thing that the present sub-goal is about and of where it belongs, for recording; None where the
    task has no sub-goals.
    freedom: how far another way would do as well, from 0 at a grasp, at a release and in narrow places to 1 in free
    space.
    """

    action: np.ndarray
    phase: str
    focus: tuple[str, str] | None = None
    freedom: float = 0.0


def servo(
    state: SimulatorState,
    position: np.ndarray,
    rotation: np.ndarray,
    gripper: float,
    *,
    gain: float = BRISK_GAIN,
    planar: float = CRUISE,
    vertical: float = CRUISE,
    turn: float = 0.5,
) -> np.ndarray:
    """The action `[7]` that moves the hand towards `position` `[3]` and `rotation` `[3, 3]`.

    planar, vertical, turn: caps on the horizontal norm, the vertical part and the rotation's norm, in action units.
    """
    motion = (position - state.hand_position) * (gain / METRES_PER_STEP)
    speed = np.hypot(motion[0], motion[1])
    if speed > planar:
        motion[:2] *= planar / speed
    motion[2] = np.clip(motion[2], -vertical, vertical)
    rotate = rotation_vector(rotation @ state.hand_rotation.T) * (TURN_GAIN / RADIANS_PER_STEP)
    rate = np.linalg.norm(rotate)
    if rate > turn:
        rotate *= turn / rate
    return np.array([*np.clip(motion, -1.0, 1.0), *rotate, gripper])


def above(point: np.ndarray, height: float) -> np.ndarray:
    """The point `[3]` that is `height` metres above `point`."""
    return point + np.array([0.0, 0.0, height])


def ramp(x: float, xs: tuple[float, ...], ys: tuple[float, ...]) -> float:
    """Piecewise linear function through (xs, ys), constant outside."""
    return float(np.interp(x, xs, ys))


def unit_clip(x: float, low: float = 0.0) -> float:
    """`x` limited to [low, 1]."""
    return float(min(max(x, low), 1.0))


def lean_back(state: SimulatorState, rotation: np.ndarray) -> np.ndarray:
    """Tip the hand, fingers outwards, where the arm reaches far, so that the elbow never locks straight."""
    reach = np.hypot(*(state.hand_position - state.base_position)[:2])
    return about_y(-ramp(reach, (0.67, 0.80), (0.0, 0.35))) @ rotation
