"""How the arm was controlled in an episode: how fresh its actions were, and how it moved.

Knows commands, latencies and positions of the hand. Does not know clocks, policies or success.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policy.types import DecodeTrace
from sim.clock import Pace
from sim.waiting import Answer, Command


@dataclass(frozen=True, slots=True)
class ControlStatistics:
    """One episode.

    simulated_s: simulated time until its end, settling left out. decisions: actions that were begun.
    ticks: control ticks. holds: ticks under the hold rule. stale: ticks without an action whose observation is at most
    one control period of the policy old; holds are among them. dropped: decisions that came when they were too old.
    deadline_misses: decisions that took longer than one control period of the policy.
    path_m: length of the hand's way in metres. jerk: root mean square of the third derivative of its position, m/s^3.
    late_p95_ms, slipped_ms: see `sim.clock.Pace`.
    """

    simulated_s: float
    ticks: int
    decisions: int
    holds: int
    stale: int
    dropped: int
    deadline_misses: int
    path_m: float
    jerk: float
    late_p95_ms: float = 0.0
    slipped_ms: float = 0.0


class ControlLog:
    """Takes notes during an episode. period_ms: the policy's control period. tick_ms: length of a control tick."""

    def __init__(self, period_ms: float, tick_ms: float) -> None:
        self._period_ms, self._tick_ms = period_ms, tick_ms
        self._commands: list[Command] = []
        self._hand: list[np.ndarray] = []
        self._begun = self._dropped = 0
        self.latencies_ms: list[float] = []
        self.traces: list[DecodeTrace] = []

    def answered(self, answer: Answer, begun: bool) -> None:
        """A decision has arrived; begun: it was not too old."""
        self.latencies_ms.append(answer.latency_ms)
        self.traces.append(answer.action.trace)
        self._begun += begun
        self._dropped += not begun

    def left(self, answer: Answer) -> None:
        """A decision came after the end."""
        self.latencies_ms.append(answer.latency_ms)

    def stepped(self, command: Command) -> None:
        """A tick has been carried out."""
        self._commands.append(command)

    def moved(self, hand_position: np.ndarray) -> None:
        """Where the hand is, metres `[3]`: at the episode's beginning and after every tick."""
        self._hand.append(hand_position)

    def statistics(self, pace: Pace) -> ControlStatistics:
        """Of an episode of at least one tick."""
        commands, positions = self._commands, np.array(self._hand)  # [ticks + 1, 3]
        oldest = self._period_ms / self._tick_ms
        return ControlStatistics(
            simulated_s=len(commands) * self._tick_ms / 1e3,
            ticks=len(commands),
            decisions=self._begun,
            holds=sum(command.held for command in commands),
            stale=sum(command.held or command.age is None or command.age > oldest for command in commands),
            dropped=self._dropped,
            deadline_misses=sum(latency > self._period_ms for latency in self.latencies_ms),
            path_m=float(np.linalg.norm(np.diff(positions, axis=0), axis=1).sum()),
            jerk=_jerk(positions, self._tick_ms / 1e3),
            late_p95_ms=pace.late_p95_ms,
            slipped_ms=pace.slipped_ms,
        )


def _jerk(positions: np.ndarray, tick_s: float) -> float:
    """Root mean square of third differences; 0 for episodes too short to have one."""
    if len(positions) < 4:
        return 0.0
    third = np.diff(positions, 3, axis=0) / tick_s**3
    return float(np.sqrt((third**2).sum(axis=1).mean()))
