"""One episode: a policy and a world until the task is solved or the time is up, the same code on every clock.

Does not know processes, files or sockets, and lets every exception through until the task is solved: what an error
means is for the caller to say.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from policy.types import DecodeTrace, Observation
from sim.clock import Clock
from sim.control_statistics import ControlLog, ControlStatistics
from sim.environments import World
from sim.protocol import CONTROL_HZ
from sim.waiting import STAND_STILL, Arm, Waiting

LOGGER = logging.getLogger(__name__)

# Stands in where nothing is rendered; only privileged policies, which look at no picture, get to see it.
NO_IMAGE = np.zeros((16, 16, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """How an episode went.

    steps: control ticks until its end. decision_ms: latency of every decision, the one included that the end came
    before, unless it failed. traces: how the policy decoded those that arrived. control: how the arm was controlled.
    """

    success: bool
    steps: int
    decision_ms: tuple[float, ...]
    traces: tuple[DecodeTrace, ...]
    control: ControlStatistics


def run_episode(
    env: World,
    clock: Clock,
    init_state: int,
    *,
    waiting: Waiting = STAND_STILL,
    latencies: Iterator[float] | None = None,
    watch: Callable[[np.ndarray], None] | None = None,
) -> EpisodeResult:
    """Runs the episode that starts at official initial state `init_state`.

    clock: holds the policy. waiting: what the arm does without a new action. latencies: what the charged clock charges
    for one decision after the other, None for what they take. watch: is called with the camera frame at the beginning
    of every 1/20 s, uint8 `[R, R, 3]`, upside down. Where a decision fails that a solved task
    left no time for, it stays solved, and the clock is left busy: not to be used again.
    Raises ValueError where a camera policy meets a world without rendering.
    """
    if not env.rendered and not clock.spec.privileged:
        raise ValueError(f"policy {clock.spec.policy_id!r} needs a camera; make the environment with render=True")
    tick_ms, lasting = 1e3 / env.control_hz, round(env.control_hz / CONTROL_HZ)
    arm, log = Arm(waiting, lasting, tick_ms), ControlLog(1e3 / CONTROL_HZ, tick_ms)

    def look() -> np.ndarray:
        log.moved(env.hand_position)
        image = observations.get("image", NO_IMAGE)
        if watch and tick % lasting == 0:
            watch(image)
        return image

    def take_answer() -> None:
        if (answer := clock.collect(tick)) is not None:
            log.answered(answer, begun=arm.begin(answer, tick))

    observations, _ = env.reset(options={"init_state": init_state})
    tick, terminated, truncated = 0, False, False
    image = look()
    clock.begin(tick_ms, latencies)
    while not (terminated or truncated):
        clock.wait_for(tick)
        take_answer()
        if clock.idle and (waiting.pipelined or not arm.busy(tick)):
            clock.ask(tick, Observation(image, env.instruction, captured_at=time.monotonic()))
            take_answer()  # where it costs no time
        command = arm.command(tick)
        may_ask = clock.may_be_idle(tick + 1) and (waiting.pipelined or not arm.busy(tick + 1))
        filmed = watch is not None and (tick + 1) % lasting == 0
        env.picture_next = may_ask or filmed  # rendering takes most of a tick's time
        observations, _, terminated, truncated, _ = env.step(command.values)
        log.stepped(command)
        tick += 1
        image = look()
    try:
        if (answer := clock.leave(tick)) is not None:
            log.left(answer)
    except Exception as error:
        if not terminated:
            raise  # the arm may have stood still for want of this decision
        LOGGER.warning("the task is solved; a decision still under way failed: %s: %s", type(error).__name__, error)
    return EpisodeResult(terminated, tick, tuple(log.latencies_ms), tuple(log.traces), log.statistics(clock.pace()))
