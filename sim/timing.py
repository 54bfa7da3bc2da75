"""How simulated and real time go together in an evaluation: its clock, latencies and what the arm does meanwhile.

Knows the options and their names in records. The clocks themselves are in `sim.clock`, the waiting in `sim.waiting`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import get_args

from sim.clock import ClockName
from sim.latency import Latencies, parse_latencies
from sim.waiting import Waiting


@dataclass(frozen=True, slots=True)
class Timing:
    """One way to run the time. The defaults are those of published LIBERO figures: the world waits.

    clock: "lock-step": the world waits for the policy. "charged": a decision that took L ms takes effect ceil(L / tick)
        control ticks after its observation, and the world runs on meanwhile. "real-time": the world runs on the wall
        clock while the policy thinks elsewhere.
    latency: what the charged clock charges: "measured", milliseconds, "lognormal:P50,P95" or "trace:FILE".
    hold: share of the last action that is done again in each control period without a new one: 0 stands still, 1
        repeats it, in between it fades. The gripper always keeps its command.
    max_age_ms: an action whose observation is older is neither begun nor repeated; infinite: never too old.
    pipelined: send the next observation as soon as the policy is free, while an action is still executed.
    seed: of random latencies, and of where episodes enter a trace.
    """

    clock: ClockName = "lock-step"
    latency: str = "measured"
    hold: float = 0.0
    max_age_ms: float = math.inf
    pipelined: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clock not in get_args(ClockName):
            raise ValueError(f"clock {self.clock!r} is none of {', '.join(get_args(ClockName))}")
        if self.clock != "charged" and self.latency != "measured":
            raise ValueError(f"only the charged clock takes a latency, not {self.clock} (latency {self.latency!r})")
        if self.clock == "lock-step" and (set_ := self._changed()):
            raise ValueError(
                f"the lock-step clock waits for every decision, which leaves no sense in {', '.join(set_)}"
            )
        self.waiting()
        self.latencies()

    def waiting(self) -> Waiting:
        """What the arm does without a new action."""
        return Waiting(self.hold, self.max_age_ms, self.pipelined)

    def latencies(self) -> Latencies:
        """What the charged clock charges."""
        return parse_latencies(self.latency)

    def of_episode(self, suite: str, task: int, init_state: int) -> Iterator[float] | None:
        """What its decisions are charged, milliseconds one after the other; None for what they take."""
        return self.latencies().of_episode(suite, task, init_state, self.seed)

    def conditions(self) -> tuple[str, ...]:
        """Everything besides the clock that makes two runs the same measurement, for records.

        A trace is named by its content, so that a file that has been recorded anew is another measurement.
        """
        if self.clock == "lock-step":
            return ()
        latency = () if self.clock == "real-time" else (f"latency {self.latencies().describe()}",)
        return (*latency, *self._changed())

    def _changed(self) -> list[str]:
        """Options besides clock and latency that are not at their defaults."""
        others = (field for field in fields(self) if field.name not in ("clock", "latency"))
        return [f"{f.name}={getattr(self, f.name)}" for f in others if getattr(self, f.name) != f.default]


LOCK_STEP = Timing()
