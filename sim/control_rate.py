"""What a delta action has to be at a control rate other than the one it was decided for.

Knows the law of robosuite's operational space controller. Does not know worlds or policies.
"""

from __future__ import annotations

import math

import numpy as np

from sim.protocol import CONTROL_HZ

_STIFFNESS = 150.0  # kp of robosuite's OSC_POSE, 1/s^2, critically damped


def delta_scale(control_hz: float) -> float:
    """Factor on the six deltas of an action so that, repeated at `control_hz`, it moves the hand as fast as at 20 Hz.

    Each tick sets the goal a delta d ahead of where the hand then is. The critically damped controller has reached its
    speed v when sqrt(kp) / 2 times the mean distance from the goal equals v; that distance is d - v T / 2, T being the
    tick, because the goal stays where it is while the hand goes on. So v = w d / (1 + w T / 2) with w = sqrt(kp) / 2,
    and shorter ticks need smaller deltas: 0.894 of them at 100 Hz.
    """
    rate = math.sqrt(_STIFFNESS) / 2.0

    def deltas_per_speed(hertz: float) -> float:
        return 1.0 + rate / (2.0 * hertz)

    return deltas_per_speed(control_hz) / deltas_per_speed(CONTROL_HZ)


def rescaled(action: np.ndarray, control_hz: float) -> np.ndarray:
    """The action `[7]` for ticks of `control_hz`, deltas clipped to -1..1 as the controller does, gripper as it is."""
    if control_hz == CONTROL_HZ:
        return action
    return np.append(delta_scale(control_hz) * np.clip(action[:6], -1.0, 1.0), action[6])
