import time

import numpy as np
import pytest

from policy.fake import FakePolicy
from policy.types import Action, DecodeTrace, Observation, PolicySpec
from sim.clock import RealTimeClock, SimulatedClock
from sim.episode import run_episode
from sim.fake import STEP_LIMIT, FakeLiberoEnv
from sim.protocol import Protocol
from sim.waiting import Waiting, simulator_action


class Forward:
    """Pushes forward; tells of what it has seen."""

    def __init__(self, privileged: bool = False) -> None:
        self.spec = PolicySpec(policy_id="forward", privileged=privileged)
        self.seen: list[Observation] = []
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def act(self, observation: Observation) -> Action:
        self.seen.append(observation)
        return Action(np.array([1, 0, 0, 0, 0, 0, 1], np.float32), np.zeros(0, np.int64), DecodeTrace(3))

    def close(self) -> None:
        pass


def lock_step(policy) -> SimulatedClock:
    return SimulatedClock(policy, charges=False)


def test_a_solved_episode():
    policy, frames = Forward(), []
    result = run_episode(FakeLiberoEnv(0), lock_step(policy), init_state=10, watch=frames.append)
    assert result.success
    assert result.steps == 4  # target 0.2, 0.05 per step
    assert [trace.target_passes for trace in result.traces] == [3, 3, 3, 3]
    assert len(result.decision_ms) == 4
    assert len(frames) == 5
    assert policy.resets == 1
    assert policy.seen[0].instruction == "reach the near target"
    assert policy.seen[0].captured_at < policy.seen[-1].captured_at


def test_an_episode_that_runs_out_of_steps():
    assert run_episode(FakeLiberoEnv(1), lock_step(Forward()), 0).steps == STEP_LIMIT
    cut_off = run_episode(FakeLiberoEnv(1, protocol=Protocol(step_limit=7)), lock_step(Forward()), 0)
    assert (cut_off.success, cut_off.steps) == (False, 7)


def test_a_camera_policy_is_not_run_blind():
    blind = FakeLiberoEnv(0, render=False)
    with pytest.raises(ValueError, match="render=True"):
        run_episode(blind, lock_step(FakePolicy()), 0)
    assert run_episode(blind, lock_step(Forward(privileged=True)), 0).success


class Failing(Forward):
    """Moves once and fails in the second decision, after the world has gone on for a while."""

    def act(self, observation: Observation) -> Action:
        if self.seen:
            time.sleep(0.25)
            raise TimeoutError("no reply")
        return super().act(observation)


def test_a_task_that_is_solved_stays_solved_whatever_becomes_of_the_next_decision(caplog):
    clock = RealTimeClock(Failing)
    result = run_episode(FakeLiberoEnv(0), clock, 0, waiting=Waiting(hold=1.0))  # solved by the action repeated
    clock.close()
    assert result.success
    assert len(result.decision_ms) == 1
    assert "no reply" in caplog.text


def test_a_decision_that_failed_is_no_failure_of_the_policy():
    clock = RealTimeClock(Failing)
    with pytest.raises(TimeoutError, match="no reply"):
        run_episode(FakeLiberoEnv(0, protocol=Protocol(step_limit=4)), clock, 20)
    clock.close()


@pytest.mark.parametrize(("openvla", "libero"), [(1.0, -1.0), (0.0, 1.0), (0.996, -1.0), (0.3, 1.0)])
def test_gripper_conversion(openvla, libero):
    values = np.array([0.1, -0.2, 0.3, 0.4, -0.5, 0.6, openvla], np.float32)
    converted = simulator_action(Action(values, np.zeros(0, np.int64), DecodeTrace(0)))
    assert converted[6] == libero
    np.testing.assert_array_equal(converted[:6], values[:6].astype(np.float64))
