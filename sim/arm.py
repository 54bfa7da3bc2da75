"""Makes robosuite's robot arms take their substeps faster with exactly the same results.

Knows what robosuite 1.4 asks of a robot in each of a control period's 25 substeps: where the hand is and how it would
move, the torques that take it to its goal, and the fingers' positions. robosuite finds every number by name through a
wrapper of MuJoCo's data. Here names and limits, which never change during an episode, are looked up once, and the
hand's Jacobians are computed once a substep instead of four times. The operations on numbers, and their order, are
robosuite's, so every bit of a trajectory stays as it was (tests compare it with the untouched simulator).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np


def speed_up_arms(domain: Any) -> None:
    """For the robots of a robosuite environment, and for those that its resets will make."""
    load_robots = domain._load_robots

    def load_faster_robots() -> None:
        load_robots()
        for robot in domain.robots:
            robot.__class__ = _faster_robot(robot.__class__)

    domain._load_robots = load_faster_robots
    for robot in domain.robots:  # their controllers stay as they are until a reset makes new ones
        robot.__class__ = _faster_robot(robot.__class__)


@functools.cache
def _faster_robot(robot_class: Any) -> Any:
    """A robosuite robot class that looks things up once: a reset makes new robots, so that holds for one episode."""

    class FasterRobot(robot_class):
        action_limits = functools.cached_property(robot_class.action_limits.fget)
        torque_limits = functools.cached_property(robot_class.torque_limits.fget)

        def _load_controller(self) -> None:
            super()._load_controller()
            self.controller.__class__ = _faster_controller(self.controller.__class__)

        def grip_action(self, gripper: Any, gripper_action: np.ndarray) -> None:
            fingers, middle, reach = self._finger_drives
            self.sim.data._data.ctrl[fingers] = middle + reach * gripper.format_action(gripper_action)

        @functools.cached_property
        def _finger_drives(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            """The actuators, the middle of what each can be told, and how far from there its ends are."""
            fingers = np.array([self.sim.model.actuator_name2id(name) for name in self.gripper.actuators])
            low, high = self.sim.model.actuator_ctrlrange[fingers].T
            return fingers, 0.5 * (high + low), 0.5 * (high - low)

    FasterRobot.__name__ = robot_class.__name__
    return FasterRobot


@functools.cache
def _faster_controller(controller_class: Any) -> Any:
    """A robosuite controller class that reads its arm's state from MuJoCo itself."""
    import mujoco

    class FasterController(controller_class):
        new_update: bool  # since the last update, which robosuite asks for more often than there is something new

        def update(self, force: bool = False) -> None:
            if not (self.new_update or force):
                return
            self.sim.forward()
            model, data = self.sim.model._model, self.sim.data._data
            hand, positions, velocities, linear, angular, inertia = self._places
            self.ee_pos = data.site_xpos[hand].copy()
            self.ee_ori_mat = data.site_xmat[hand].reshape(3, 3).copy()
            mujoco.mj_jacSite(model, data, linear, angular, hand)
            self.ee_pos_vel, self.ee_ori_vel = np.dot(linear, data.qvel), np.dot(angular, data.qvel)
            self.joint_pos, self.joint_vel = data.qpos[positions], data.qvel[velocities]
            self.J_pos, self.J_ori = linear[:, velocities], angular[:, velocities]
            self.J_full = np.concatenate([self.J_pos, self.J_ori])
            mujoco.mj_fullM(model, inertia, data.qM)
            self.mass_matrix = inertia[velocities, :][:, velocities]
            self.new_update = False

        @property
        def torque_compensation(self) -> np.ndarray:
            return self.sim.data._data.qfrc_bias[self._places[2]]

        @functools.cached_property
        def _places(self) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            """The hand's site, where the joints' positions and velocities are, and room for Jacobians and inertia."""
            freedoms = self.sim.model.nv
            jacobians = np.zeros((2, 3, freedoms))
            return (
                self.sim.model.site_name2id(self.eef_name),
                np.array(self.qpos_index),
                np.array(self.qvel_index),
                *jacobians,
                np.zeros((freedoms, freedoms)),
            )

    FasterController.__name__ = controller_class.__name__
    return FasterController
