"""One process that runs episodes with a simulator of its own, seen from both ends of its pipe.

Knows how to keep a world and its policies open for the next episode, and how a process ends. Does not choose episodes.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from policy.types import PolicySpec
from sim.clock import Clock, ClockName, RealTimeClock, SimulatedClock
from sim.environments import World, open_environment
from sim.episode import EpisodeResult, run_episode
from sim.episode_queue import EpisodeItem, WorldKind
from sim.records import EndReason
from sim.sources import PolicySource
from sim.threads import single_threaded_children
from sim.video import write_video

LOGGER = logging.getLogger(__name__)

# Seconds that a process has to end before it is killed: in the middle of an episode, where it says goodbye to its
# policies unless it hangs, and between two.
_PATIENCE_S, _PATIENCE_IDLE_S = 2.0, 10.0


class WorkerSetupError(RuntimeError):
    """A worker could not open its world or reach its policy; every further episode would fail the same way."""


@dataclass(frozen=True, slots=True)
class EpisodeDone:
    """The episode ended by itself. spec: of the policy that acted. seconds: wall time, reset included."""

    result: EpisodeResult
    spec: PolicySpec
    renderer: str
    seconds: float


@dataclass(frozen=True, slots=True)
class EpisodeFailed:
    """The episode could not be finished; says nothing about the policy's skill."""

    reason: EndReason
    message: str


Outcome = EpisodeDone | EpisodeFailed


@dataclass(frozen=True, slots=True)
class Rendering:
    """How a worker draws. enabled: whether at all. device: number of its EGL device, None for the user's choice."""

    enabled: bool = True
    device: int | None = None


@dataclass(frozen=True, slots=True)
class _Assignment:
    """source: of the episode's policy. policies: numbers of those in use, whose clients are to be kept."""

    item: EpisodeItem
    source: PolicySource
    policies: Set[int]


@dataclass(frozen=True, slots=True)
class _SetupFailed:
    message: str


class EpisodeWorker:
    """The parent's end: starts the process, hands it episodes one at a time, replaces it when it has died.

    item: the episode under way, None while there is none. last: the one handed over last. given_at: when that was, in
    seconds of time.monotonic.
    """

    def __init__(self, rendering: Rendering) -> None:
        self._rendering = rendering
        self.given_at = self._ends_by = 0.0
        self.item: EpisodeItem | None = None
        self.last: EpisodeItem | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._rendering), daemon=True)
        with single_threaded_children():
            self._process.start()
        theirs.close()  # so that the death of the process ends the connection

    def give(self, item: EpisodeItem, source: PolicySource, policies: Set[int]) -> None:
        """Hands over the next episode. policies: numbers of those in use; clients of others are closed."""
        self.item = self.last = item
        self.given_at = time.monotonic()
        # A process that has died in the meantime is noticed by `collect`.
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(_Assignment(item, source, policies))

    def collect(self) -> tuple[EpisodeItem, Outcome]:
        """The episode given and what became of it; to be called when the connection has something to say.

        Raises WorkerSetupError.
        """
        assert self.item is not None
        item, self.item = self.item, None
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            text = f"the worker process ended with exit code {self._process.exitcode}"
            self._replace()
            return item, EpisodeFailed(EndReason.PROCESS_DIED, text)
        if isinstance(message, _SetupFailed):
            raise WorkerSetupError(message.message)
        return item, message

    def abort(self) -> EpisodeItem:
        """Gives up the episode under way, in two seconds at most, and returns it."""
        assert self.item is not None
        self.stop()
        item, self.item = self.item, None
        self._wait_or_kill()
        self._replace()
        return item

    def _replace(self) -> None:
        self.connection.close()
        self._start()

    def stop(self) -> None:
        """Asks the process to end: at once in the middle of an episode, else in its own time."""
        self._ends_by = time.monotonic() + (_PATIENCE_IDLE_S if self.item is None else _PATIENCE_S)
        if self.item is not None:
            self._process.terminate()
        else:
            with contextlib.suppress(BrokenPipeError):
                self.connection.send(None)

    def close(self) -> None:
        """Waits for the end of a process that was asked to."""
        self._wait_or_kill()
        self.connection.close()

    def _wait_or_kill(self) -> None:
        self._process.join(max(0.0, self._ends_by - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _work(connection: Connection, rendering: Rendering) -> None:
    """The life of a worker process: take an episode, run it, send back what became of it, until None comes."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when to stop
    signal.signal(signal.SIGTERM, _leave)
    if rendering.device is not None:
        os.environ["MUJOCO_EGL_DEVICE_ID"] = str(rendering.device)  # read when the simulator is imported
    bench: _Bench | None = None
    try:
        while (assignment := connection.recv()) is not None:
            item = assignment.item
            if bench and bench.kind != item.world:
                bench.close()
                bench = None
            try:
                bench = bench or _Bench(item.world, rendering.enabled)
                clock = bench.clock(assignment)
            except Exception as error:
                connection.send(_SetupFailed(f"{item.suite} task {item.task}: {_describe(error)}"))
                return
            outcome: Outcome
            try:
                outcome = bench.run(item, clock)
            except Exception as error:
                LOGGER.debug("episode failed", exc_info=True)
                outcome = EpisodeFailed(EndReason.EXCEPTION, _describe(error))
                bench.close()  # neither world nor policies can be trusted to be in order
                bench = None
            connection.send(outcome)
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone
    finally:
        if bench:
            bench.close()


def _leave(*_: object) -> None:
    """Ends the process by way of everyone's `finally`, so that policy servers hear that their client has gone."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


class _Bench:
    """The world a worker has open, and a policy on its clock for everyone who acts in it."""

    def __init__(self, kind: WorldKind, render: bool) -> None:
        self.kind = kind
        self._env: World = open_environment(kind.suite, kind.task, render=render, protocol=kind.protocol)
        self._clocks: dict[tuple[int, ClockName], Clock] = {}

    def clock(self, assignment: _Assignment) -> Clock:
        """The clock of the policy that is to act; those of policies out of use are closed."""
        for key in [key for key in self._clocks if key[0] not in assignment.policies]:
            self._clocks.pop(key).close()
        key = (assignment.item.policy, assignment.item.timing.clock)
        if key not in self._clocks:
            self._clocks[key] = self._open(assignment.source, assignment.item.timing.clock)
        return self._clocks[key]

    def _open(self, source: PolicySource, clock: ClockName) -> Clock:
        if clock == "real-time":
            return RealTimeClock(lambda: source.open(self._env))
        return SimulatedClock(source.open(self._env), charges=clock == "charged")

    def run(self, item: EpisodeItem, clock: Clock) -> EpisodeDone:
        frames: list[np.ndarray] = []
        started = time.perf_counter()
        result = run_episode(
            self._env,
            clock,
            item.init_state,
            waiting=item.timing.waiting(),
            latencies=item.timing.of_episode(item.suite, item.task, item.init_state),
            watch=frames.append if item.video else None,
        )
        done = EpisodeDone(result, clock.spec, self._env.renderer, time.perf_counter() - started)
        if not clock.idle:  # its last decision failed, and would again in the next episode
            self._clocks.pop((item.policy, item.timing.clock)).close()
        if item.video:
            _film(item.video, frames, f"{self._env.instruction}: {_ending(result)}")
        return done

    def close(self) -> None:
        for clock in self._clocks.values():
            clock.close()
        self._env.close()


def _ending(result: EpisodeResult) -> str:
    seconds = f"{result.control.simulated_s:.1f} s of simulated time"
    return f"solved after {seconds}" if result.success else f"not solved in {seconds}"


def _film(path: Path, frames: Sequence[np.ndarray], caption: str) -> None:
    """Writes a film, or warns that it is missing: the episode was run all the same."""
    try:
        write_video(path, frames, caption)
    except Exception as error:
        LOGGER.warning("the film %s is missing: %s", path, _describe(error))
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
