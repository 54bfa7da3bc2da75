"""Keeps the expert from moving like a machine: a fixed smooth field varies its speed and bends its ways.

Demonstrations whose speed is always at its cap repeat the same action tokens, which flatters every drafter that looks
at the past. The variation is a function of the task and of where the hand is, so a policy that sees the hand can learn
it; noise per step could not be learned and would vanish from the policy's actions.
Knows actions and positions; knows nothing of skills but how freely each lets its way be varied.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np

from sim.expert.servo import Decision, ramp

_WAVES = 8  # plane waves whose sum is a field of about unit variance
_SHORTEST, _LONGEST = 0.12, 0.40  # wavelengths, metres
_SLOWEST = 0.75  # share of the full speed
_SIDEWAYS = 0.30  # radians, of the horizontal direction at most: 1 to 2 cm off a straight way
_UPWARDS = 0.25  # share of the horizontal speed at most: about 1 cm above the way; never below it
_SLOW, _FAST = 0.2, 0.6  # norms of the motion, in action units: up to the first nothing is slowed, from the second all


class Variation:
    """The fields of one task.

    instruction: what the robot is told, which is what tells tasks apart; the same words give the same fields.
    """

    def __init__(self, instruction: str) -> None:
        random = np.random.default_rng(crc32(instruction.encode()))
        directions = random.normal(size=(3, _WAVES, 3))
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        lengths = random.uniform(_SHORTEST, _LONGEST, (3, _WAVES, 1))
        self._waves = 2.0 * np.pi * directions / lengths  # [fields, waves, xyz], radians per metre
        self._phases = random.uniform(0.0, 2.0 * np.pi, (3, _WAVES))

    def fields(self, position: np.ndarray) -> np.ndarray:
        """Values `[3]` in -1..1 at a position `[3]`: of speed, sideways and upward bend."""
        waves = np.cos(self._waves @ position + self._phases)
        return np.tanh(waves.sum(1) * np.sqrt(2.0 / _WAVES))

    def __call__(self, decision: Decision, position: np.ndarray) -> np.ndarray:
        """The action `[7]` of `decision`, varied, with the hand at `position` `[3]`.

        Only as far as the decision is free: where the hand pulls, pushes, grasps or lets go, force and place matter.
        Slow motions stay as they are, and so does the turning of the hand, which has to keep up with disturbances.
        """
        action = decision.action.copy()
        speed, sideways, upwards = self.fields(position)
        turn = decision.freedom * _SIDEWAYS * sideways
        x, y = action[:2]
        action[:2] = np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y
        rise = decision.freedom * _UPWARDS * 0.5 * (1.0 + upwards) * np.hypot(x, y)
        action[2] = np.clip(action[2] + rise, -1.0, 1.0)
        share = decision.freedom * ramp(float(np.linalg.norm(action[:3])), (_SLOW, _FAST), (0.0, 1.0))
        action[:3] *= 1.0 - share * (1.0 - _SLOWEST) * 0.5 * (1.0 - speed)
        return action
