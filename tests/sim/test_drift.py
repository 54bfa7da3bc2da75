"""Things that drift, and finer control rates, in the real simulator without rendering."""

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sim.clock import SimulatedClock
from sim.drift import REACH
from sim.episode import run_episode
from sim.expert import ExpertPolicy
from sim.expert.state import SimulatorState
from sim.libero import LiberoEnv
from sim.protocol import SETTLE_ACTION, Protocol

pytestmark = pytest.mark.libero
SPEED = 0.05
MOVED = {"libero_object": "alphabet_soup_1", "libero_spatial": "plate_1"}


@pytest.fixture(scope="module", params=MOVED)
def moving(request):
    env = LiberoEnv(request.param, 0, render=False, protocol=Protocol(drift_mm_s=1e3 * SPEED))
    yield env
    env.close()


def drifted(env: LiberoEnv, state: int, ticks: int) -> np.ndarray:
    """Positions `[ticks + 1, 3]` of the moving thing, from where it stood, while the hand keeps still."""
    env.reset(options={"init_state": state})
    scene, name = SimulatorState(env.simulator), MOVED[env.task.suite]
    positions = [scene.position(name)]
    for _ in range(ticks):
        env.step(SETTLE_ACTION)
        positions.append(scene.position(name))
    return np.array(positions) - positions[0]


def test_it_rides_to_and_fro_at_its_speed(moving):
    way = drifted(moving, 0, 60)
    steps = np.abs(np.diff(way[:, 1]))
    assert np.median(steps) == pytest.approx(SPEED / 20, rel=0.05)
    assert np.abs(way[:, 1]).max() == pytest.approx(REACH, abs=0.005)
    assert np.abs(way[:, [0, 2]]).max() < 0.005
    assert way[5, 1] * drifted(moving, 1, 5)[5, 1] < 0  # the next initial state sets out to the other side


def test_the_same_initial_state_is_the_same_ride(moving):
    np.testing.assert_array_equal(drifted(moving, 3, 20), drifted(moving, 3, 20))


def test_the_expert_gets_hold_of_it(moving):
    assert run_episode(moving, SimulatedClock(ExpertPolicy(moving), charges=False), 2).success


def test_gymnasium_finds_nothing_to_complain_about():
    env = LiberoEnv("libero_object", 0, protocol=Protocol(drift_mm_s=20.0, control_hz=100, resolution=64))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*alternative render modes.*")  # not registered with gymnasium.make
        check_env(env)
    env.close()


def test_tasks_without_anything_to_move_say_so():
    env = LiberoEnv("libero_goal", 0, render=False, protocol=Protocol(drift_mm_s=20.0))
    with pytest.raises(ValueError, match="choose one that puts a thing on a plate or into a basket"):
        env.reset(options={"init_state": 0})
    env.close()


def hand_speed(hz: int, action: list[float]) -> np.ndarray:
    """Metres per second `[3]` of the hand under a constant action, once it has gathered speed."""
    env = LiberoEnv("libero_object", 0, render=False, protocol=Protocol(control_hz=hz))
    env.reset(options={"init_state": 0})
    positions = []
    for _ in range(15 * hz // 20):
        env.step(np.array(action))
        positions.append(env.hand_position)
    env.close()
    return (positions[-1] - positions[5 * hz // 20 - 1]) * 2.0


def test_actions_move_the_hand_as_fast_at_a_higher_control_rate():
    for action in ([0.5, 0, 0, 0, 0, 0, -1], [0, -0.3, 0.5, 0, 0, 0, -1]):
        np.testing.assert_allclose(hand_speed(100, action), hand_speed(20, action), rtol=0.03, atol=0.002)
