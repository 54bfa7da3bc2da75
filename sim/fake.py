"""A world without a simulator, to test everything around one: same interface as `sim.libero.LiberoEnv`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from sim.protocol import OFFICIAL, Protocol

STEP_LIMIT = 30
INSTRUCTIONS = ("reach the near target", "reach the target out of reach")
INITIAL_STATES = 50
_STEP_LENGTH = 0.05


class FakeLiberoEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A point on a line that has to be moved from 0 to the target by the action's first element, 0.05 per step at most
    (less where the protocol asks for a higher control rate).

    Task 0's targets lie within reach of the step limit (initial state i at 0.1 + i / 100); task 1's do not. The image
    is grey, brighter the nearer the target.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  (Gymnasium's contract)

    def __init__(self, task: int, *, render: bool = True, protocol: Protocol = OFFICIAL) -> None:
        if task not in range(len(INSTRUCTIONS)):
            raise ValueError(f"the fake suite has tasks 0 (can be solved) and 1 (cannot), not {task}")
        self.rendered = render
        self.renderer = "fake" if render else "none"
        self.instruction = INSTRUCTIONS[task]
        self.control_hz = protocol.control_hz
        self.step_limit = (protocol.step_limit or STEP_LIMIT) * protocol.ticks_per_step
        side = protocol.resolution
        image: dict[str, spaces.Space] = {"image": spaces.Box(0, 255, (side, side, 3), np.uint8)} if render else {}
        self.observation_space: spaces.Space[Any] = spaces.Dict(image)
        self.action_space = spaces.Box(-1.0, 1.0, (7,), np.float64)
        self.steps = 0
        self.picture_next = True
        self._side = side
        self._ticks_per_step = protocol.ticks_per_step
        self._farther = 100.0 * task
        self._position = self._target = 0.0

    @property
    def hand_position(self) -> np.ndarray:
        """Where the point is, `[3]`, on the x axis."""
        return np.array([self._position, 0.0, 0.0])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Puts the point back to 0 and the target where the initial state, or else chance, says."""
        super().reset(seed=seed)
        number = (options or {}).get("init_state")
        drawn = self.np_random.uniform(0.0, INITIAL_STATES) if number is None else number
        self._position, self._target, self.steps = 0.0, 0.1 + drawn / 100 + self._farther, 0
        self._take_picture()
        return self._observations(), {"success": False, "steps": 0, "init_state": number}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Moves the point; solved as soon as it has passed the target."""
        self._position += _STEP_LENGTH / self._ticks_per_step * float(np.clip(action[0], -1.0, 1.0))
        self.steps += 1
        if self.picture_next:
            self._take_picture()
        success = self._position >= self._target
        info = {"success": success, "steps": self.steps}
        return self._observations(), float(success), success, not success and self.steps >= self.step_limit, info

    def _observations(self) -> dict[str, np.ndarray]:
        return {"image": self._image} if self.rendered else {}

    def _take_picture(self) -> None:
        brightness = int(255 * np.clip(self._position / self._target, 0.0, 1.0))
        self._image = np.full((self._side, self._side, 3), brightness, np.uint8)
