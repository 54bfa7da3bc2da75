"""A stretched arm bends before it does anything else, and a bent one is left alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from sim.expert.posture import ELBOW, bent
from sim.expert.rotations import HAND_DOWN, about_x, rotation_vector

ACTION = np.array([-0.7, 0.2, -0.8, 0.1, -0.2, 0.3, 1.0])


@dataclass
class Arm:
    elbow: float
    hand_rotation: np.ndarray = field(default_factory=lambda: about_x(0.4) @ HAND_DOWN)

    def joint(self, name: str) -> float:
        assert name == ELBOW
        return self.elbow


@pytest.mark.parametrize("elbow", [-2.4, -0.71])
def test_a_bent_arm_does_as_it_is_told(elbow: float) -> None:
    assert bent(ACTION, Arm(elbow)) is ACTION  # type: ignore[arg-type]


def test_a_stretched_arm_rises_and_turns_down() -> None:
    action = bent(ACTION, Arm(-0.07))  # type: ignore[arg-type]
    np.testing.assert_allclose(action[:3], [0.0, 0.0, 0.6])
    wanted = rotation_vector(about_x(-0.4))
    np.testing.assert_allclose(np.cross(action[3:6], wanted), 0.0, atol=1e-9)
    assert action[3:6] @ wanted > 0
    assert np.linalg.norm(action[3:6]) <= 0.8 + 1e-9
    assert action[6] == ACTION[6]
    down = bent(ACTION, Arm(-0.07, HAND_DOWN))  # type: ignore[arg-type]
    np.testing.assert_allclose(down[3:6], 0.0, atol=1e-9)


def test_between_the_two_nothing_jumps() -> None:
    actions = np.array([bent(ACTION, Arm(elbow)) for elbow in np.linspace(-0.8, -0.07, 400)])  # type: ignore[arg-type]
    assert np.abs(np.diff(actions, axis=0)).max() < 0.02
