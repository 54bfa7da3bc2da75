"""Opens the world that a suite's name stands for."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from sim.protocol import OFFICIAL
from sim.protocol import Protocol as EpisodeProtocol
from sim.suites import UnknownSuiteError, find_task


class World(Protocol):
    """What episodes need of an environment, LIBERO's or the fake one; see `sim.libero.LiberoEnv` for the meaning."""

    rendered: bool
    renderer: str
    picture_next: bool

    @property
    def instruction(self) -> str: ...

    @property
    def control_hz(self) -> int: ...

    @property
    def hand_position(self) -> np.ndarray: ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]: ...

    def close(self) -> None: ...


def task_instruction(suite: str, task: int) -> str:
    """What the robot is told in this task, without opening it. Raises UnknownSuiteError."""
    if suite == "fake":
        from sim.fake import INSTRUCTIONS

        if task not in range(len(INSTRUCTIONS)):
            raise UnknownSuiteError(f"the fake suite has tasks 0 to {len(INSTRUCTIONS) - 1}, not {task}")
        return INSTRUCTIONS[task]
    return find_task(suite, task).instruction


def initial_state_count(suite: str, task: int) -> int:
    """Number of official initial states of this task, without opening it. Raises UnknownSuiteError."""
    if suite == "fake":
        from sim.fake import INITIAL_STATES

        return INITIAL_STATES
    return len(find_task(suite, task).initial_states())


def open_environment(suite: str, task: int, *, render: bool = True, protocol: EpisodeProtocol = OFFICIAL) -> World:
    """The environment of task `task` of `suite`; the suite "fake" needs no simulator. Raises as `LiberoEnv` does."""
    if suite == "fake":
        from sim.fake import FakeLiberoEnv

        return FakeLiberoEnv(task, render=render, protocol=protocol)
    from sim.libero import LiberoEnv

    return LiberoEnv(suite, task, render=render, protocol=protocol)
