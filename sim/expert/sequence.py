"""Several sub-goals in one task, in a fixed order, told apart by what the scene looks like and not by a counter."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from sim.expert.servo import Decision
from sim.expert.state import Goal, SimulatorState


class Stage(Protocol):
    """A skill that serves one of several goals.

    goal: its predicate. focus: names of the thing it is about and of where that belongs.
    """

    @property
    def goal(self) -> Goal: ...

    @property
    def focus(self) -> tuple[str, str]: ...

    def __call__(self, state: SimulatorState) -> Decision: ...

    def holding(self, state: SimulatorState) -> bool:
        """Whether its thing is between the fingers."""
        ...

    def leave(self, state: SimulatorState) -> Decision | None:
        """How to get away from its thing once the goal holds; None when the hand is free for another one."""
        ...


class Sequence:
    """Serves the first goal that does not hold yet, but finishes with a thing that is in the hand first.

    So a thing that slips out of its place is put back, after whatever is being carried has arrived.
    """

    def __init__(self, stages: list[Stage]) -> None:
        self._stages = stages

    def __call__(self, state: SimulatorState) -> Decision:
        stage, decision = self._choose(state)
        return replace(decision, phase=f"{stage.focus[0]}: {decision.phase}", focus=stage.focus)

    def _choose(self, state: SimulatorState) -> tuple[Stage, Decision]:
        reached = [state.holds(stage.goal) for stage in self._stages]
        waiting = [stage for stage, holds in zip(self._stages, reached, strict=True) if not holds]
        for stage in waiting:
            if stage.holding(state):
                return stage, stage(state)
        for stage, holds in zip(self._stages, reached, strict=True):
            if holds and (decision := stage.leave(state)) is not None:
                return stage, decision
        present = waiting[0] if waiting else self._stages[-1]
        return present, present(state)
