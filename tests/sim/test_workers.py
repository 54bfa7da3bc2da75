import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from policy.fake import FakePolicy
from policy.types import Action, ActionPolicy, Observation, PolicySpec
from sim.environments import World
from sim.episode_queue import EpisodeItem
from sim.episode_worker import EpisodeDone, EpisodeFailed, WorkerSetupError
from sim.policy_hosts import StandingPolicy
from sim.records import EndReason
from sim.workers import WorkerPool


class TroubledPolicy(FakePolicy):
    """Pushes forward; in its second step fails in the given way unless there is a mark that it has done so before."""

    def __init__(self, trouble: str, mark: Path) -> None:
        super().__init__()
        self._trouble, self._mark, self._step = trouble, mark, 0

    def reset(self, session: str = "") -> None:
        self._step = 0

    def act(self, observation: Observation, session: str = "") -> Action:
        self._step += 1
        if self._step == 2 and self._trouble and not self._mark.exists():
            if "once" in self._trouble:
                self._mark.touch()
            if "hangs" in self._trouble:
                time.sleep(60)
            if "dies" in self._trouble:
                os._exit(7)
            raise RuntimeError("the robot is on fire")
        action = super().act(observation)
        action.values[0] = 1.0
        return action


@dataclass(frozen=True)
class Troubled:
    """Opens a TroubledPolicy, in the fake suite's task 0 only."""

    trouble: str
    mark: Path

    def spec(self) -> PolicySpec:
        return FakePolicy().spec

    def open(self, env: World) -> ActionPolicy:
        if self.trouble == "unreachable":
            raise ConnectionError("no server there")
        return TroubledPolicy(self.trouble if "near" in env.instruction else "", self.mark)


def run(trouble: str, tmp_path: Path, tasks: tuple[int, ...] = (0,), states: int = 1, workers: int = 1, **options):
    items = [EpisodeItem("fake", task, state) for task in tasks for state in range(states)]
    with WorkerPool([StandingPolicy(Troubled(trouble, tmp_path / "mark"))], workers, render=True, **options) as pool:
        return dict(pool.run(items))


def test_two_workers_run_every_episode_once(tmp_path):
    outcomes = run("", tmp_path, tasks=(0, 1), states=4, workers=2)
    assert len(outcomes) == 8
    assert all(isinstance(outcome, EpisodeDone) for outcome in outcomes.values())
    assert {item.task: outcome.result.success for item, outcome in outcomes.items()} == {0: True, 1: False}


@pytest.mark.parametrize("trouble", ["dies once", "fails once"])
def test_an_episode_is_repeated_after_one_accident(tmp_path, trouble):
    outcomes = run(trouble, tmp_path, states=2)
    assert (tmp_path / "mark").exists()
    assert all(isinstance(outcome, EpisodeDone) and outcome.result.success for outcome in outcomes.values())


def test_an_episode_that_hangs_is_repeated_once_and_then_an_error_and_the_others_go_on(tmp_path, caplog):
    failed, done = run("hangs", tmp_path, tasks=(0, 1), episode_limit_s=5.0).values()
    assert isinstance(failed, EpisodeFailed)
    assert failed.reason is EndReason.PROCESS_DIED
    assert failed.message == "no end within 0.0833 minutes; the worker process was ended"
    assert caplog.text.count("fake task 0 state 0 again: no end within") == 1
    assert isinstance(done, EpisodeDone)


def test_a_process_that_keeps_dying_is_an_error_and_the_others_go_on(tmp_path):
    outcomes = run("dies", tmp_path, tasks=(0, 1))
    failed, done = outcomes.values()
    assert isinstance(failed, EpisodeFailed)
    assert failed.reason is EndReason.PROCESS_DIED
    assert "exit code 7" in failed.message
    assert isinstance(done, EpisodeDone)


def test_a_repeated_exception_is_an_error_with_its_message(tmp_path):
    (outcome,) = run("fails", tmp_path).values()
    assert isinstance(outcome, EpisodeFailed)
    assert (outcome.reason, outcome.message) == (EndReason.EXCEPTION, "RuntimeError: the robot is on fire")


def test_an_unreachable_policy_stops_the_evaluation(tmp_path):
    with pytest.raises(WorkerSetupError, match="no server there"):
        run("unreachable", tmp_path, states=50)
