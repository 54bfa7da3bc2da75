"""What the arm does in each control tick: the newest action while it lasts, and a hold when nothing fresh is there.

Knows actions and ticks as the embodiment sees them. Does not know where actions come from or what a clock is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from policy.types import Action


@dataclass(frozen=True, slots=True)
class Waiting:
    """The rule for times without a new action; the fields are those of `sim.timing.Timing`.

    An action's age counts when it is to be begun and when it is to be repeated, not within its own control period.
    Actions are deltas, so the last action again is no hold: the arm would go on moving. Zero motion stands still.
    """

    hold: float = 0.0
    max_age_ms: float = math.inf
    pipelined: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.hold <= 1.0:
            raise ValueError(f"hold must be 0 (stand still) to 1 (repeat the last action), got {self.hold}")
        if not self.max_age_ms > 0.0:
            raise ValueError(f"max_age_ms must be positive, or infinite for no limit; got {self.max_age_ms}")


STAND_STILL = Waiting()


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision that has arrived. asked_at: tick of its observation. latency_ms: from that tick to its arrival."""

    action: Action
    asked_at: int
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Command:
    """What the simulator is given for one tick.

    values: float64 `[7]`, raw LIBERO (gripper -1 open, +1 closed). age: ticks since the observation behind it, None
    before the first action. held: under the hold rule rather than by a decision.
    """

    values: np.ndarray
    age: int | None
    held: bool


class Arm:
    """Executes actions for one episode.

    lasting: ticks an action is meant for, one control period of the policy. tick_ms: length of a tick.
    """

    def __init__(self, waiting: Waiting, lasting: int, tick_ms: float) -> None:
        self._waiting = waiting
        self._lasting = lasting
        self._max_age = waiting.max_age_ms / tick_ms
        self._motion = np.zeros(6)
        self._gripper = -1.0  # open, as the arm starts
        self._asked_at: int | None = None
        self._begun_at = -lasting

    def busy(self, tick: int) -> bool:
        """Whether the last action is still meant to be executed in this tick."""
        return tick < self._begun_at + self._lasting

    def begin(self, answer: Answer, tick: int) -> bool:
        """Takes over a new action from this tick on; False where it came too late and is dropped."""
        if tick - answer.asked_at > self._max_age:
            return False
        values = simulator_action(answer.action)
        self._motion, self._gripper = values[:6], float(values[6])
        self._asked_at, self._begun_at = answer.asked_at, tick
        return True

    def command(self, tick: int) -> Command:
        """What to do in this tick."""
        if self._asked_at is None:
            return Command(np.append(np.zeros(6), self._gripper), None, held=True)
        age = tick - self._asked_at
        periods = (tick - self._begun_at) // self._lasting
        # What was begun is carried out: cut off in its middle it would be neither the policy's action nor a hold.
        repeated = self._waiting.hold**periods if periods == 0 or age <= self._max_age else 0.0
        return Command(np.append(repeated * self._motion, self._gripper), age, held=periods > 0)


def simulator_action(action: Action) -> np.ndarray:
    """A policy's action as LIBERO takes it, float64 `[7]`.

    The pose is passed on as it is. OpenVLA's gripper (1 = open, 0 = closed) is made binary and turned round to the
    simulator's (-1 = open, +1 = closed): g' = -sign(2g - 1), as `normalize_gripper_action` and `invert_gripper_action`
    of the original do one after the other.
    """
    values = np.asarray(action.values, np.float64).copy()
    values[6] = -np.sign(2.0 * values[6] - 1.0)
    return values
