"""Gets the arm out of a posture in which its controller cannot draw the hand back: the elbow stretched to its end.

Knows the arm's joints and nothing of tasks. The controller moves the hand along straight lines, and a stretched arm has
no joint that would move it inwards, so whoever asks for that stands still. Asked only to rise and to turn straight
down, the hand lets the elbow bend, which the controller draws back to where it began.
"""

from __future__ import annotations

import numpy as np

from sim.expert.rotations import HAND_DOWN, rotation_vector
from sim.expert.servo import RADIANS_PER_STEP, TURN_GAIN, ramp
from sim.expert.state import SimulatorState

ELBOW = "robot0_joint4"
# Radians; the joint's end is at -0.07. Of 190 solved episodes those without noise stay below -1.0, and all with noise
# but one below -0.7. From the first to the second the hand's own motion fades, from the second to the third rising and
# turning take its place.
_BENT, _STRETCHED, _AT_END = -0.70, -0.55, -0.30
# In action units: how fast to rise, and the cap on the rotation's norm.
_RISE, _TURN = 0.6, 0.8


def bent(action: np.ndarray, state: SimulatorState) -> np.ndarray:
    """The action `[7]`, or where the elbow is stretched, one that lets it bend; the gripper stays as it is."""
    elbow = state.joint(ELBOW)
    if elbow <= _BENT:
        return action
    motion = ramp(elbow, (_BENT, _STRETCHED), (1.0, 0.0))
    escape = ramp(elbow, (_STRETCHED, _AT_END), (0.0, 1.0))
    turn = rotation_vector(HAND_DOWN @ state.hand_rotation.T) * (TURN_GAIN / RADIANS_PER_STEP)
    turn *= min(1.0, _TURN / max(float(np.linalg.norm(turn)), 1e-9))
    moved = motion * action[:3] + np.array([0.0, 0.0, escape * _RISE])
    return np.concatenate([moved, (1.0 - escape) * action[3:6] + escape * turn, action[6:]])
