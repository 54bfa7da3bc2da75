"""What becomes of an episode when something goes wrong after its end, and how a worker process leaves."""

import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from bridge.server import PolicyServer
from policy.fake import FakePolicy
from policy.types import Action, ActionPolicy, Observation, PolicySpec
from sim.environments import World
from sim.episode_queue import EpisodeItem
from sim.episode_worker import EpisodeFailed, EpisodeWorker, Rendering, _Assignment, _Bench
from sim.records import EndReason
from sim.sources import RemotePolicy
from sim.timing import Timing


class FailsAfterwards(FakePolicy):
    """Moves forward once; its second decision takes a while and fails."""

    def __init__(self) -> None:
        super().__init__()
        self.decisions = 0

    def reset(self, session: str = "") -> None:
        self.decisions = 0

    def act(self, observation: Observation, session: str = "") -> Action:
        self.decisions += 1
        if self.decisions == 2:
            time.sleep(0.25)
            raise TimeoutError("no reply")
        action = super().act(observation)
        action.values[0] = 1.0
        return action


@dataclass(frozen=True)
class Source:
    def spec(self) -> PolicySpec:
        return FakePolicy().spec

    def open(self, env: World) -> ActionPolicy:
        return FailsAfterwards()


@dataclass(frozen=True)
class Hanging:
    """A policy that never answers and does not listen to signals, like a driver that hangs."""

    mark: Path

    def spec(self) -> PolicySpec:
        return FakePolicy().spec

    def open(self, env: World) -> ActionPolicy:
        self.mark.touch()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        time.sleep(60)
        raise AssertionError("nobody killed this process")


@pytest.fixture
def worker():
    made = EpisodeWorker(Rendering())
    yield made
    made.stop()
    made.close()


def wait_until(condition, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def test_an_episode_counts_though_its_film_cannot_be_written(tmp_path, caplog):
    (tmp_path / "films").write_text("a file where a folder is needed")
    item = EpisodeItem("fake", 0, 0, video=tmp_path / "films" / "x.mp4", timing=Timing("real-time", hold=1.0))
    bench = _Bench(item.world, render=True)
    done = bench.run(item, bench.clock(_Assignment(item, Source(), {0})))
    bench.close()
    assert done.result.success
    assert "x.mp4 is missing" in caplog.text


def test_after_a_decision_that_failed_at_the_end_the_next_episode_starts_afresh(caplog):
    item = EpisodeItem("fake", 0, 0, timing=Timing("real-time", hold=1.0))
    bench = _Bench(item.world, render=True)
    for _ in range(2):
        assert bench.run(item, bench.clock(_Assignment(item, Source(), {0}))).result.success
    bench.close()
    assert caplog.text.count("no reply") == 2


@pytest.mark.parametrize("how", ["abort", "stop", "signal"])
def test_a_worker_that_is_ended_says_goodbye_to_its_server(worker, how):
    server = PolicyServer(FakePolicy(delay_s=0.05), endpoint="tcp://127.0.0.1:*").start()
    try:
        server.wait_ready(10)
        worker.give(EpisodeItem("fake", 1, 0), RemotePolicy(server.endpoint), {0})
        wait_until(lambda: server.counters.actions > 2)
        assert len(server._dispatcher._sessions) == 1
        started = time.monotonic()
        if how == "signal":
            os.kill(worker._process.pid, signal.SIGTERM)
            assert wait([worker.connection], 5)
            outcome = worker.collect()[1]
            assert isinstance(outcome, EpisodeFailed)
            assert (outcome.reason, "exit code 143" in outcome.message) == (EndReason.PROCESS_DIED, True)
        else:
            getattr(worker, how)()
        wait_until(lambda: len(server._dispatcher._sessions) == 0, 3)
        assert time.monotonic() - started < 3
    finally:
        server.close()


@pytest.mark.parametrize("how", ["abort", "close"])
def test_a_worker_that_hangs_is_killed(worker, tmp_path, how):
    worker.give(EpisodeItem("fake", 0, 0), Hanging(tmp_path / "mark"), {0})
    wait_until((tmp_path / "mark").exists)
    started = time.monotonic()
    if how == "abort":
        worker.abort()
    else:
        worker.stop()
        worker.close()
    assert time.monotonic() - started < 5
