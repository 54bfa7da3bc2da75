"""What the expert may look at: the exact state of the simulated scene.

Knows MuJoCo's arrays and LIBERO's naming of bodies, sites and geoms; knows nothing of actions or tasks.
Reads the simulator and never writes to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import mujoco

Goal = tuple[str, ...]
"""A goal predicate of LIBERO, e.g. `("on", "akita_black_bowl_1", "plate_1")` or `("turnon", "flat_stove_1")`."""

_BOX_CORNERS = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
_LEFT, _RIGHT, _PALM = 1, 2, 3
_BOX = 6  # mujoco.mjtGeom.mjGEOM_BOX; MuJoCo is not imported here because its import chooses the GL back end


class SimulatorState:
    """A live view of one scene; make a new one after every reset, because a reset builds a new MuJoCo model.

    simulator: LIBERO's `ControlEnv`. Lengths are metres, angles radians, both in the world frame.
    """

    def __init__(self, simulator: Any) -> None:
        self._scene = simulator.env
        model = self._model = self._scene.sim.model._model
        self._data: mujoco.MjData = self._scene.sim.data._data
        self.objects: tuple[str, ...] = (*self._scene.objects_dict, *self._scene.fixtures_dict)
        self._bodies = {model.body(i).name: i for i in range(model.nbody)}
        self._sites = {model.site(i).name: i for i in range(model.nsite)}
        self._geoms = {model.geom(i).name: i for i in range(model.ngeom)}
        self._joints = {model.joint(i).name: int(model.jnt_qposadr[i]) for i in range(model.njnt)}
        self._hand = self._sites["gripper0_grip_site"]
        self._fingers = [self._joints[f"gripper0_finger_joint{i}"] for i in (1, 2)]
        self._name_geoms()
        self.base_position = np.array(self._data.xpos[self._bodies["robot0_base"]])

    def _name_geoms(self) -> None:
        """Tabulate once, per geom: which part of the gripper it is, and which object's collision box."""
        model = self._model
        collides = (model.geom_contype + model.geom_conaffinity) > 0
        self._gripper_part = np.zeros(model.ngeom, np.int8)
        self._object_of_geom = np.full(model.ngeom, -1)
        # An object's name may continue another's, so the longest match wins.
        by_length = sorted(enumerate(self.objects), key=lambda item: -len(item[1]))
        prefixes = (("gripper0_finger1", _LEFT), ("gripper0_finger2", _RIGHT), ("gripper0_hand_coll", _PALM))
        for geom in np.flatnonzero(collides):
            geom_name, body_name = model.geom(geom).name, model.body(model.geom_bodyid[geom]).name
            self._gripper_part[geom] = next((part for prefix, part in prefixes if geom_name.startswith(prefix)), 0)
            if model.geom_type[geom] == _BOX:
                owner = (index for index, name in by_length if body_name.startswith(f"{name}_"))
                self._object_of_geom[geom] = next(owner, -1)
        self._boxes = {name: np.flatnonzero(self._object_of_geom == i) for i, name in enumerate(self.objects)}

    # --- the hand

    @property
    def hand_position(self) -> np.ndarray:
        """Position `[3]` of the grip site, which the controller moves; the fingertips are 9 mm further along."""
        return np.array(self._data.site_xpos[self._hand])

    @property
    def hand_rotation(self) -> np.ndarray:
        """Axes `[3, 3]` (columns) of the grip site: x along the fingers' travel, z along the tool."""
        return self._data.site_xmat[self._hand].reshape(3, 3).copy()

    @property
    def finger_gap(self) -> float:
        """Distance between the fingers: 0.08 open, 0 closed."""
        return float(self._data.qpos[self._fingers[0]] - self._data.qpos[self._fingers[1]])

    # --- things

    def _body(self, name: str) -> int | None:
        """Id of the body, or of the root body of the object, called `name`."""
        return self._bodies.get(name, self._bodies.get(f"{name}_main"))

    def position(self, name: str) -> np.ndarray:
        """Position `[3]` of an object, body, site or geom; KeyError if the scene has none of that name."""
        body = self._body(name)
        if body is not None:
            return np.array(self._data.xpos[body])
        if name in self._sites:
            return np.array(self._data.site_xpos[self._sites[name]])
        return np.array(self._data.geom_xpos[_find(self._geoms, "object, body, site or geom", name)])

    def rotation(self, name: str) -> np.ndarray:
        """Axes `[3, 3]` (columns) of an object or body; KeyError if the scene has none of that name."""
        body = self._body(name)
        if body is None:
            raise KeyError(f"the scene has no object or body called {name!r}")
        return self._data.xmat[body].reshape(3, 3).copy()

    def joint(self, name: str) -> float:
        """Value of a hinge (radians) or slide (metres) joint."""
        return float(self._data.qpos[_find(self._joints, "joint", name)])

    def corners(self, name: str) -> np.ndarray:
        """Corners `[G, 8, 3]` of an object's G collision boxes."""
        boxes = self._boxes[name]
        axes = self._data.geom_xmat[boxes].reshape(-1, 3, 3)
        offsets = _BOX_CORNERS[None] * self._model.geom_size[boxes][:, None]
        return offsets @ axes.transpose(0, 2, 1) + self._data.geom_xpos[boxes][:, None]

    def bounds(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest world coordinates `[3]` of an object's collision boxes."""
        corners = self.corners(name).reshape(-1, 3)
        return corners.min(0), corners.max(0)

    def body_poses(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions `[bodies, 3]` and quaternions `[bodies, 4]` (w first) of the model's bodies in their parents.

        The reset places fixtures by writing these, so a state alone does not show the same scene again.
        """
        return np.array(self._model.body_pos), np.array(self._model.body_quat)

    # --- touch

    def geoms_of_object(self, name: str) -> np.ndarray:
        """Mask `[ngeom]` of an object's collision boxes."""
        return self._object_of_geom == self.objects.index(name)

    def geoms_of_body(self, name: str) -> np.ndarray:
        """Mask `[ngeom]` of the geoms fixed to one body."""
        return self._model.geom_bodyid == _find(self._bodies, "body", name)

    def geom(self, name: str) -> np.ndarray:
        """Mask `[ngeom]` of a single geom."""
        return np.arange(self._model.ngeom) == _find(self._geoms, "geom", name)

    def _gripper_contacts(self) -> tuple[np.ndarray, np.ndarray]:
        """Part of the gripper and the other geom, `[C]` each, of every contact of the gripper with something else."""
        pairs = np.asarray(self._data.contact.geom, int).reshape(-1, 2)
        pairs = np.concatenate([pairs, pairs[:, ::-1]])
        part, other_part = self._gripper_part[pairs[:, 0]], self._gripper_part[pairs[:, 1]]
        keep = (part > 0) & (other_part == 0)
        return part[keep], pairs[keep, 1]

    def finger_contacts(self, geoms: np.ndarray) -> tuple[bool, bool]:
        """Whether the first and the second finger touch one of the geoms in the mask `[ngeom]`."""
        part, other = self._gripper_contacts()
        touching = part[geoms[other]]
        return bool((touching == _LEFT).any()), bool((touching == _RIGHT).any())

    def gripper_touches_other(self, name: str) -> bool:
        """Whether the fingers or the palm touch any object or fixture except the one called `name`."""
        _, other = self._gripper_contacts()
        owner = self._object_of_geom[other]
        return bool(((owner >= 0) & (owner != self.objects.index(name))).any())

    # --- the task

    @property
    def instruction(self) -> str:
        """What the task's definition tells the robot to do."""
        return " ".join(self._scene.parsed_problem["language_instruction"])

    @property
    def goals(self) -> tuple[Goal, ...]:
        """The task's goal predicates, all of which have to hold."""
        return tuple(tuple(goal) for goal in self._scene.parsed_problem["goal_state"])

    def holds(self, goal: Goal) -> bool:
        """Whether one goal predicate holds now, as LIBERO judges it."""
        return bool(self._scene._eval_predicate(goal))

    def start_of(self, name: str) -> str:
        """Region the task's definition first puts the object in, e.g. `"wooden_cabinet_1_top_region"`."""
        for fact in self._scene.parsed_problem["initial_state"]:
            if len(fact) == 3 and fact[1] == name:
                return str(fact[2])
        raise KeyError(f"the task's definition does not say where {name!r} starts")

    @property
    def objects_of_interest(self) -> tuple[str, ...]:
        """Objects and regions the task's definition names as its subject, the moved object first."""
        return tuple(self._scene.obj_of_interest)


def _find(table: dict[str, int], kind: str, name: str) -> int:
    if name not in table:
        raise KeyError(f"the scene has no {kind} called {name!r}")
    return table[name]
