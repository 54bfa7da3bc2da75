"""Clocks with a world that is a point on a line, which must get past its target: every tick of motion counts."""

import random
import time
from collections.abc import Iterator
from itertools import cycle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.types import Action, DecodeTrace, Observation, PolicySpec
from sim.clock import Clock, RealTimeClock, SimulatedClock
from sim.episode import EpisodeResult, run_episode
from sim.fake import STEP_LIMIT, FakeLiberoEnv
from sim.protocol import Protocol
from sim.waiting import STAND_STILL, Waiting

TICK_MS = 50.0


class Halfway:
    """Moves by how dark the picture is, so what it does depends on when it has looked; may take its time."""

    def __init__(self, delays_s: Iterator[float] | None = None, privileged: bool = False) -> None:
        self.spec = PolicySpec(policy_id="halfway", privileged=privileged)
        self.delays_s = delays_s
        self.actions: list[float] = []
        self.resets = 0

    def reset(self) -> None:
        self.actions = []
        self.resets += 1

    def act(self, observation: Observation) -> Action:
        if self.delays_s is not None:
            time.sleep(next(self.delays_s))
        speed = 0.2 + 0.8 * (1.0 - observation.image[0, 0, 0] / 255.0)
        self.actions.append(speed)
        return Action(np.array([speed, 0, 0, 0, 0, 0, 1], np.float32), np.zeros(0, np.int64), DecodeTrace(7))

    def close(self) -> None:
        pass


def charged(latencies: Iterator[float], state: int = 20, waiting: Waiting = STAND_STILL, hz: int = 20) -> EpisodeResult:
    clock: Clock = SimulatedClock(Halfway(), charges=True)
    return run_episode(FakeLiberoEnv(0, protocol=Protocol(control_hz=hz)), clock, state, waiting=waiting,
                       latencies=latencies)  # fmt: skip


def lock_step(state: int = 20, hz: int = 20) -> EpisodeResult:
    world = FakeLiberoEnv(0, protocol=Protocol(control_hz=hz))
    return run_episode(world, SimulatedClock(Halfway(), charges=False), state)


def test_decisions_that_take_no_time_are_lock_step():
    free, waiting = charged(cycle([0.0])), lock_step()
    assert (free.success, free.steps) == (waiting.success, waiting.steps)
    assert waiting.control.holds == waiting.control.stale == free.control.holds == 0
    assert free.control.path_m == waiting.control.path_m


@pytest.mark.parametrize(("latency", "ticks"), [(0.0, 0), (0.1, 1), (50.0, 1), (50.1, 2), (149.0, 3), (300.0, 6)])
def test_a_decision_takes_effect_so_many_ticks_after_its_observation(latency, ticks):
    result = charged(cycle([latency]), state=0)
    assert result.success
    assert result.control.ticks == result.steps
    # One tick of motion, then `ticks` of waiting: the last decision's tick ends the episode.
    assert result.steps == result.control.decisions * (ticks + 1)
    assert result.control.holds == result.control.decisions * ticks
    assert result.control.deadline_misses == (result.control.decisions if latency > TICK_MS else 0)


def test_pipelining_looks_again_while_the_arm_moves():
    serial, pipelined = (charged(cycle([150.0]), 0, Waiting(pipelined=yes)) for yes in (False, True))
    assert pipelined.steps == pipelined.control.decisions * 3 + 1
    assert pipelined.steps < serial.steps
    assert charged(cycle([50.0]), waiting=Waiting(pipelined=True)).control.holds == 1  # only the first tick


def test_a_slow_policy_runs_out_of_simulated_time():
    assert not charged(cycle([300.0])).success
    assert charged(cycle([300.0])).steps == STEP_LIMIT
    assert charged(cycle([100.0]), state=0).success


def test_an_answer_that_is_too_old_is_dropped():
    late = charged(cycle([150.0, 40.0]), waiting=Waiting(max_age_ms=100.0))
    assert late.control.dropped == late.control.decisions > 0  # every other
    assert charged(cycle([150.0]), waiting=Waiting(max_age_ms=100.0)).control.decisions == 0


def test_a_finer_control_rate_charges_finer():
    coarse, fine = charged(cycle([20.0])), charged(cycle([20.0]), hz=100)
    assert fine.control.simulated_s < coarse.control.simulated_s
    # 5 ticks of motion after 2 of waiting
    assert fine.control.holds == 2 * fine.control.decisions
    assert lock_step(hz=100).control.simulated_s == pytest.approx(lock_step().control.simulated_s, abs=0.05)


@given(st.lists(st.floats(0.0, 400.0), min_size=1, max_size=8), st.booleans(), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=60, deadline=None)
def test_whatever_the_latencies(latencies, pipelined, hold):
    waiting = Waiting(hold=hold, pipelined=pipelined)
    first, second = (charged(cycle(latencies), waiting=waiting) for _ in range(2))
    assert first == second  # deterministic
    control = first.control
    assert control.holds <= control.stale <= control.ticks == first.steps <= STEP_LIMIT
    assert control.decisions <= control.ticks
    assert len(first.traces) == control.decisions + control.dropped
    assert len(first.decision_ms) - len(first.traces) in (0, 1)  # the end may come before the last decision
    assert first.decision_ms == tuple(latency for latency, _ in zip(cycle(latencies), first.decision_ms, strict=False))
    if not pipelined:
        assert control.decisions + control.holds == control.ticks


@given(st.lists(st.floats(0.0, 200.0), min_size=1, max_size=8), st.booleans(), st.sampled_from([20, 100]))
@settings(max_examples=40, deadline=None)
def test_pictures_that_nobody_asks_for_are_not_missed(latencies, pipelined, hz):
    def run(watch) -> EpisodeResult:
        world, clock = FakeLiberoEnv(0, protocol=Protocol(control_hz=hz)), SimulatedClock(Halfway(), charges=True)
        waiting = Waiting(hold=0.5, max_age_ms=120.0, pipelined=pipelined)
        return run_episode(world, clock, 20, waiting=waiting, latencies=cycle(latencies), watch=watch)

    frames: list[np.ndarray] = []
    watched = run(frames.append)
    assert run(None) == watched
    assert len(frames) == watched.steps // (hz // 20) + 1  # a film has 20 pictures a second


@given(st.floats(0.0, 400.0), st.floats(0.0, 400.0))
@settings(max_examples=40, deadline=None)
def test_waiting_longer_never_gets_an_arm_that_stands_still_there_earlier(one, other):
    fast, slow = (charged(cycle([latency]), state=5) for latency in sorted((one, other)))
    assert fast.steps <= slow.steps


@pytest.mark.parametrize("pipelined", [False, True])
def test_the_charged_clock_repeats_a_real_time_run_from_its_latencies(pipelined):
    delays = random.Random(pipelined)
    waiting = Waiting(hold=0.5, pipelined=pipelined)
    policy = Halfway(delays.uniform(0.005, 0.17) for _ in range(1000))
    clock = RealTimeClock(lambda: policy)
    lived = run_episode(FakeLiberoEnv(0), clock, 20, waiting=waiting)
    clock.close()
    repeating = Halfway()
    again = run_episode(
        FakeLiberoEnv(0),
        SimulatedClock(repeating, charges=True),
        20,
        waiting=waiting,
        latencies=cycle(lived.decision_ms),
    )
    assert (again.success, again.steps) == (lived.success, lived.steps)
    assert again.decision_ms == lived.decision_ms
    assert repeating.actions == policy.actions
    assert (again.control.holds, again.control.path_m) == (lived.control.holds, lived.control.path_m)


def test_real_time_goes_on_while_the_policy_thinks():
    clock = RealTimeClock(lambda: Halfway(cycle([0.12])))
    started = time.monotonic()
    result = run_episode(FakeLiberoEnv(0), clock, 0)
    clock.close()
    assert time.monotonic() - started >= result.control.simulated_s - 0.05
    # On a busy machine the schedule slips, which takes the time from latencies.
    assert sum(result.decision_ms) + result.control.slipped_ms >= 120.0 * len(result.decision_ms)
    assert result.control.holds >= result.control.decisions > 0


def test_a_slow_world_stops_the_real_time_clock_instead_of_blaming_the_policy():
    class Slow(FakeLiberoEnv):
        def step(self, action):
            time.sleep(0.12)
            return super().step(action)

    clock = RealTimeClock(lambda: Halfway(cycle([0.01])))
    result = run_episode(Slow(0), clock, 0)
    clock.close()
    assert result.control.slipped_ms > 100.0
    assert result.control.decisions <= result.control.holds < 2 * result.control.decisions  # about a tick each


def test_real_time_starts_afresh_after_an_unfinished_decision():
    policy = Halfway(cycle([0.2]))
    clock = RealTimeClock(lambda: policy)
    for _ in range(2):
        result = run_episode(FakeLiberoEnv(0, protocol=Protocol(step_limit=2)), clock, 0)
        assert (len(result.decision_ms), result.traces) == (1, ())
        assert result.decision_ms[0] + result.control.slipped_ms > 200.0
    clock.close()
    assert policy.resets == 2


def test_what_the_policy_raises_is_raised():
    class Broken(Halfway):
        def act(self, observation):
            raise RuntimeError("no power")

    clock = RealTimeClock(Broken)
    with pytest.raises(RuntimeError, match="no power"):
        run_episode(FakeLiberoEnv(0), clock, 0)
    clock.close()


def test_real_time_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="charged clock"):
        RealTimeClock(lambda: Halfway(privileged=True))
    clock = RealTimeClock(Halfway)
    with pytest.raises(ValueError, match="charged clock"):
        clock.begin(50.0, cycle([1.0]))
    clock.close()
