"""Runs episodes in several processes, each with a simulator and a policy of its own.

Knows processes: who gets which episode, and what happens when one of them dies. Does not know files or statistics.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sim.clock import Clock, ClockName, RealTimeClock, SimulatedClock
from sim.environments import World, open_environment
from sim.episode import EpisodeResult, run_episode
from sim.protocol import OFFICIAL, Protocol
from sim.records import EndReason
from sim.sources import PolicySource
from sim.threads import single_threaded_children
from sim.timing import LOCK_STEP, Timing
from sim.video import write_video

LOGGER = logging.getLogger(__name__)

# An episode whose process dies, or that ends in an exception, is tried this often before it counts as an error.
ATTEMPTS = 2


class WorkerSetupError(RuntimeError):
    """A worker could not open its world or reach its policy; every further episode would fail the same way."""


class Bench(NamedTuple):
    """A world and a clock."""

    suite: str
    task: int
    protocol: Protocol
    clock: ClockName


@dataclass(frozen=True, slots=True)
class EpisodeItem:
    """One episode to run. video: where to film it, None for no film."""

    suite: str
    task: int
    init_state: int
    video: Path | None = None
    protocol: Protocol = OFFICIAL
    timing: Timing = LOCK_STEP

    @property
    def bench(self) -> Bench:
        """What a worker has to have open for it."""
        return Bench(self.suite, self.task, self.protocol, self.timing.clock)


@dataclass(frozen=True, slots=True)
class EpisodeDone:
    """The episode ended by itself. seconds: wall time, reset included."""

    result: EpisodeResult
    renderer: str
    seconds: float


@dataclass(frozen=True, slots=True)
class EpisodeFailed:
    """The episode could not be finished; says nothing about the policy's skill."""

    reason: EndReason
    message: str


@dataclass(frozen=True, slots=True)
class _SetupFailed:
    message: str


Outcome = EpisodeDone | EpisodeFailed


class EpisodeQueue:
    """Hands out episodes so that a worker stays with its bench, since changing it means building a new world."""

    def __init__(self, items: Sequence[EpisodeItem]) -> None:
        self._waiting: dict[Bench, list[EpisodeItem]] = {}
        self._workers: Counter[Bench] = Counter()
        for item in items:
            self._waiting.setdefault(item.bench, []).append(item)

    def take(self, current: EpisodeItem | None) -> EpisodeItem | None:
        """The next episode for a worker that has just run `current`; None when all are handed out.

        Of the same bench, else of one nobody works at, else of the one with the most episodes left per worker.
        """
        bench = current.bench if current else None
        if bench is not None and not self._waiting.get(bench):
            self._workers[bench] -= 1
            bench = None
        unfinished = [key for key, items in self._waiting.items() if items]
        if not unfinished:
            return None
        if bench is None:
            untouched = [key for key in unfinished if not self._workers[key]]
            bench = untouched[0] if untouched else max(unfinished, key=self._episodes_per_worker)
            self._workers[bench] += 1
        return self._waiting[bench].pop(0)

    def give_back(self, item: EpisodeItem) -> None:
        """Puts an episode first in its line again."""
        self._waiting[item.bench].insert(0, item)

    def _episodes_per_worker(self, bench: Bench) -> float:
        return len(self._waiting[bench]) / self._workers[bench]


class WorkerPool:
    """Worker processes for one evaluation; use as a context manager, so that none survives it."""

    def __init__(self, source: PolicySource, workers: int, render: bool) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self._workers = workers
        self._arguments = (source, render)
        self._running: list[_Worker] = []

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._running:
            worker.stop()

    def run(self, items: Sequence[EpisodeItem], deadline: float = math.inf) -> Iterator[tuple[EpisodeItem, Outcome]]:
        """Yields every episode with its outcome as it ends; none is started after `deadline` (of time.monotonic).

        Raises WorkerSetupError if a worker cannot get to work.
        """
        queue = EpisodeQueue(items)
        attempts: Counter[EpisodeItem] = Counter()
        self._running = [_Worker(*self._arguments) for _ in range(min(self._workers, len(items)))]
        for worker in self._running:
            worker.give(queue.take(None))
        while busy := [worker for worker in self._running if worker.item]:
            for connection in wait([worker.connection for worker in busy]):
                worker = next(worker for worker in busy if worker.connection is connection)
                item, outcome = worker.collect()
                attempts[item] += 1
                if isinstance(outcome, EpisodeFailed) and attempts[item] < ATTEMPTS:
                    LOGGER.warning("%s task %d state %d again: %s", *_place(item), outcome.message)
                    queue.give_back(item)
                else:
                    yield item, outcome
                if not worker.alive:
                    worker.start()
                worker.give(queue.take(item) if time.monotonic() < deadline else None)


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, source: PolicySource, render: bool) -> None:
        self._arguments = (source, render)
        self.item: EpisodeItem | None = None
        self.start()

    def start(self) -> None:
        """Starts the process, or a new one in place of one that has died."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, *self._arguments), daemon=True)
        with single_threaded_children():
            self._process.start()
        theirs.close()  # so that the death of the process ends the connection
        self.alive = True

    def give(self, item: EpisodeItem | None) -> None:
        """Hands over the next episode, None when there is no more."""
        self.item = item
        # A process that has died in the meantime is noticed by `collect`.
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(item)

    def collect(self) -> tuple[EpisodeItem, Outcome]:
        """The episode given and what became of it; to be called when the connection has something to say."""
        assert self.item is not None
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            self.alive = False
            text = f"the worker process ended with exit code {self._process.exitcode}"
            return self.item, EpisodeFailed(EndReason.PROCESS_DIED, text)
        if isinstance(message, _SetupFailed):
            raise WorkerSetupError(message.message)
        return self.item, message

    def stop(self) -> None:
        """Ends the process: at once in the middle of an episode, else in its own time."""
        if self.item is None:
            self._process.join(timeout=10.0)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
        self.connection.close()


def _work(connection: Connection, source: PolicySource, render: bool) -> None:
    """The life of a worker process: take an episode, run it, send back what became of it, until None comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    bench: _OpenBench | None = None
    try:
        while (item := connection.recv()) is not None:
            if bench is None or bench.kind != item.bench:
                if bench:
                    bench.close()
                try:
                    bench = _OpenBench(item.bench, source, render)
                except Exception as error:
                    connection.send(_SetupFailed(f"{item.suite} task {item.task}: {_describe(error)}"))
                    return
            outcome: Outcome
            try:
                outcome = bench.run(item)
            except Exception as error:
                LOGGER.debug("episode failed", exc_info=True)
                outcome = EpisodeFailed(EndReason.EXCEPTION, _describe(error))
                bench.close()  # neither world nor policy can be trusted to be in order
                bench = None
            connection.send(outcome)
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone
    finally:
        if bench:
            bench.close()


class _OpenBench:
    """The world and the policy a worker has open."""

    def __init__(self, kind: Bench, source: PolicySource, render: bool) -> None:
        self.kind = kind
        self._env: World = open_environment(kind.suite, kind.task, render=render, protocol=kind.protocol)
        self._clock: Clock
        if kind.clock == "real-time":
            self._clock = RealTimeClock(lambda: source.open(self._env))
        else:
            self._clock = SimulatedClock(source.open(self._env), charges=kind.clock == "charged")

    def run(self, item: EpisodeItem) -> EpisodeDone:
        frames: list[np.ndarray] = []
        started = time.perf_counter()
        result = run_episode(
            self._env,
            self._clock,
            item.init_state,
            waiting=item.timing.waiting(),
            latencies=item.timing.of_episode(item.suite, item.task, item.init_state),
            watch=frames.append if item.video else None,
        )
        seconds = time.perf_counter() - started
        if item.video:
            seconds_taken = f"{result.control.simulated_s:.1f} s of simulated time"
            ending = f"solved after {seconds_taken}" if result.success else f"not solved in {seconds_taken}"
            write_video(item.video, frames, f"{self._env.instruction}: {ending}")
        return EpisodeDone(result, self._env.renderer, seconds)

    def close(self) -> None:
        self._clock.close()
        self._env.close()


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _place(item: EpisodeItem) -> tuple[str, int, int]:
    return item.suite, item.task, item.init_state
