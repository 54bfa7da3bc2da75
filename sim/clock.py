"""When a decision takes effect: at once (lock-step), after its latency in ticks (charged), or when it is there.

Knows policies, ticks and latencies. Does not know worlds, nor what the arm does while it waits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from policy.types import Action, ActionPolicy, Observation, PolicySpec
from sim.waiting import Answer

ClockName = Literal["lock-step", "charged", "real-time"]

# To which latencies are recorded.
_RESOLUTION_MS = 1e-3


@dataclass(frozen=True, slots=True)
class Pace:
    """How well the world kept to the wall clock in one episode; all zero where it need not.

    late_p95_ms: 95 % quantile over ticks of how late each began against the schedule. slipped_ms: time by which the
    schedule was put off because the world could not keep up, summed over the episode.
    """

    late_p95_ms: float = 0.0
    slipped_ms: float = 0.0


class Clock(Protocol):
    """One decision at a time is under way: `ask` only while `idle`."""

    @property
    def spec(self) -> PolicySpec: ...

    @property
    def idle(self) -> bool: ...

    def may_be_idle(self, tick: int) -> bool:
        """Whether the policy can be free in a later tick, as far as is known; then its picture is needed."""

    def begin(self, tick_ms: float, latencies: Iterator[float] | None) -> None:
        """A new episode with ticks of this length. latencies: of its decisions in order, None for measured ones."""

    def wait_for(self, tick: int) -> None:
        """Returns when the tick may begin."""

    def ask(self, tick: int, observation: Observation) -> None:
        """Hands the observation of this tick's beginning to the policy."""

    def collect(self, tick: int) -> Answer | None:
        """The decision that takes effect in this tick, if there is one. Raises what the policy raised."""

    def leave(self, tick: int) -> Answer | None:
        """The decision still under way when the episode has ended before this tick; waits for it."""

    def pace(self) -> Pace: ...

    def close(self) -> None: ...


class SimulatedClock:
    """The world stands still while the policy thinks; what that takes is charged in ticks afterwards.

    charges: False is the lock-step clock, on which every decision takes effect in the tick of its observation.
    """

    def __init__(self, policy: ActionPolicy, *, charges: bool) -> None:
        self._policy = policy
        self._charges = charges
        self._tick_ms = math.inf
        self._latencies: Iterator[float] | None = None
        self._pending: Answer | None = None

    @property
    def spec(self) -> PolicySpec:
        return self._policy.spec

    @property
    def idle(self) -> bool:
        return self._pending is None

    def may_be_idle(self, tick: int) -> bool:
        return self._pending is None or self._due(self._pending) <= tick

    def begin(self, tick_ms: float, latencies: Iterator[float] | None) -> None:
        self._tick_ms, self._latencies, self._pending = tick_ms, latencies, None
        self._policy.reset()

    def wait_for(self, tick: int) -> None:
        """Simulated time waits for nothing."""

    def ask(self, tick: int, observation: Observation) -> None:
        started = time.perf_counter()
        action = self._policy.act(observation)
        measured = 1e3 * (time.perf_counter() - started)
        self._pending = Answer(action, tick, measured if self._latencies is None else next(self._latencies))

    def collect(self, tick: int) -> Answer | None:
        answer = self._pending
        if answer is None or tick < self._due(answer):
            return None
        self._pending = None
        return answer

    def leave(self, tick: int) -> Answer | None:
        answer, self._pending = self._pending, None
        return answer

    def pace(self) -> Pace:
        return Pace()

    def close(self) -> None:
        self._policy.close()

    def _due(self, answer: Answer) -> int:
        """The tick in which the answer takes effect."""
        return answer.asked_at + (math.ceil(answer.latency_ms / self._tick_ms) if self._charges else 0)


class RealTimeClock:
    """Ticks on an absolute schedule of the wall clock, the policy in a thread of its own (or, behind a bridge's client,
    in another process).

    A decision takes effect in the first tick that is *scheduled* after its arrival, however late that tick begins, and
    its latency counts from the scheduled tick of its observation. So the charged clock repeats the run from its
    latencies. A world that falls more than a tick behind stops the clock until it has caught up (`Pace.slipped_ms`):
    the policy is not to pay for a slow simulator.

    open_policy: is called in the policy's thread, since a bridge's client belongs to the thread that made it.
    Raises ValueError for a privileged policy, which would read the simulator's state while it changes.
    """

    def __init__(self, open_policy: Callable[[], ActionPolicy]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._policy = self._thread.submit(open_policy).result()
        self._pending: tuple[int, Future[tuple[Action, float]]] | None = None
        self._tick_s = self._origin = self._slipped_s = 0.0
        self._late_ms: list[float] = []
        if self.spec.privileged:
            self.close()
            raise ValueError(f"{self.spec.policy_id} reads the simulator's state, which moves; use the charged clock")

    @property
    def spec(self) -> PolicySpec:
        return self._policy.spec

    @property
    def idle(self) -> bool:
        return self._pending is None

    def may_be_idle(self, tick: int) -> bool:
        return True

    def begin(self, tick_ms: float, latencies: Iterator[float] | None) -> None:
        """Resets the policy and lets the schedule begin now. Raises ValueError for latencies, which are lived here."""
        if latencies is not None:
            raise ValueError("the real-time clock takes its latencies from the policy; use the charged clock")
        self._thread.submit(self._policy.reset).result()
        self._tick_s, self._slipped_s, self._late_ms = tick_ms / 1e3, 0.0, []
        self._origin = time.monotonic()

    def wait_for(self, tick: int) -> None:
        time.sleep(max(0.0, self._scheduled(tick) - time.monotonic()))
        late = time.monotonic() - self._scheduled(tick)
        self._late_ms.append(1e3 * late)
        if late > self._tick_s:
            self._origin += late
            self._slipped_s += late

    def ask(self, tick: int, observation: Observation) -> None:
        self._pending = tick, self._thread.submit(self._decide, observation)

    def collect(self, tick: int) -> Answer | None:
        if self._pending is None or not self._pending[1].done():
            return None
        if self._pending[1].result()[1] > self._scheduled(tick):
            return None  # arrived since this tick should have begun
        return self.leave(tick)

    def leave(self, tick: int) -> Answer | None:
        if self._pending is None:
            return None
        (asked_at, decision), self._pending = self._pending, None  # also where the decision failed
        action, arrived_at = decision.result()
        latency_ms = 1e3 * (arrived_at - self._scheduled(asked_at))
        # A slip, or a thread switch between arrival and tick, must not make it one tick shorter than what was lived.
        shortest_ms = 1e3 * self._tick_s * (tick - asked_at - 1) + _RESOLUTION_MS
        return Answer(action, asked_at, max(latency_ms, shortest_ms))

    def pace(self) -> Pace:
        return Pace(float(np.percentile(self._late_ms, 95)), 1e3 * self._slipped_s)

    def close(self) -> None:
        self._thread.submit(self._policy.close)
        self._thread.shutdown()

    def _decide(self, observation: Observation) -> tuple[Action, float]:
        return self._policy.act(observation), time.monotonic()

    def _scheduled(self, tick: int) -> float:
        return self._origin + tick * self._tick_s
