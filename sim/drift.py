"""Things that move: the one that a task is about rides to and fro on a conveyor that is not seen.

Knows LIBERO's scenes and goals. Does not know policies; what moves, how fast and until when follows from the task, the
protocol and the initial state alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Length of the conveyor to either side of where the thing stood, metres; clear of the neighbours in most scenes.
REACH = 0.04
_SIDEWAYS = 1  # world y: left and right as the camera and the robot see it
_FALLEN = 0.01  # a thing this much higher or lower than at the start is carried, or lies elsewhere


class Drift:
    """Moves one thing of a scene, a little before each control tick. Make a new one after every reset.

    The plate moves in tasks that put something on it, in others the thing to be picked up. It moves at constant speed
    along world y, REACH to either side, turns back at the ends and from whatever else it touches, and stands still
    while the gripper or, a plate, the thing to be put on it touches it.

    simulator: LIBERO's `ControlEnv`, reset. speed: metres per second. first: +1 or -1, the direction it sets out in.
    Raises ValueError for a task that has nothing to be moved so: its thing stands on or in another.
    """

    def __init__(self, simulator: Any, speed: float, first: float) -> None:
        self._scene = simulator.env
        self._model, self._data = self._scene.sim.model._model, self._scene.sim.data._data
        moved, rider = _roles(self._scene.parsed_problem)
        self._rider = None if rider is None else self._bodies_of(rider)
        joint = self._scene.get_object(moved).joints[0]
        self._address = int(self._model.joint(joint).qposadr[0])
        self._own = self._bodies_of(moved)
        self._gripper = self._bodies_of("gripper0")
        self._standing = self._touching() | {0}  # the floor or table it stands on
        self._start = self._data.qpos[self._address : self._address + 3].copy()
        self._speed, self._direction = speed, first
        self.name = moved

    @property
    def stands_free(self) -> bool:
        """Whether the thing is moved now: upright where it started, with nothing that holds it or lies on it."""
        height = self._data.qpos[self._address + 2] - self._start[2]
        held = self._touching() & (self._gripper | (self._rider or set()))
        return abs(height) < _FALLEN and not held

    def advance(self, seconds: float) -> None:
        """Moves the thing by this much time. Velocities stay as they are: it rides, it is not pushed."""
        if not self.stands_free:
            return
        y = self._address + _SIDEWAYS
        offset = self._data.qpos[y] - self._start[_SIDEWAYS]
        if abs(offset) >= REACH:
            self._direction = -float(np.sign(offset))
        for body in self._touching() - self._standing - self._gripper:
            self._direction = float(np.sign(self._data.qpos[y] - self._data.xpos[body][_SIDEWAYS]))
        self._data.qpos[y] += self._direction * self._speed * seconds

    def _bodies_of(self, name: str) -> set[int]:
        """Numbers of the bodies of an object or of the gripper."""
        named = ((index, self._model.body(index).name) for index in range(self._model.nbody))
        return {index for index, body in named if body.startswith(f"{name}_")}

    def _touching(self) -> set[int]:
        """Bodies in contact with the thing."""
        bodies = self._model.geom_bodyid[np.asarray(self._data.contact.geom, int).reshape(-1, 2)]  # [contacts, 2]
        own = np.isin(bodies, list(self._own))
        return {int(body) for body in bodies[own[:, ::-1] & ~own]}


def _roles(problem: dict[str, Any]) -> tuple[str, str | None]:
    """What moves, and what makes it stand still by lying on it. Raises ValueError where nothing can."""
    goals = problem["goal_state"]
    if len(goals) == 1 and len(goals[0]) == 3:
        _, thing, place = goals[0]
        if place.startswith("plate_"):
            return place, thing
        if place.startswith("basket_"):
            return thing, None
    raise ValueError(
        f"nothing drifts in tasks with the goal {goals}; choose one that puts a thing on a plate or into a basket, "
        "such as those of libero_spatial and libero_object"
    )
