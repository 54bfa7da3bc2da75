"""LIBERO tasks as a Gymnasium environment.

Knows how the official evaluation sets up an episode (`sim.protocol`) and how robosuite takes its pictures. Does not
know policies: images come out as the simulator makes them (upside down), actions go in as the simulator takes them.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces

from sim import physics, rendering
from sim.arm import speed_up_arms
from sim.control_rate import rescaled
from sim.drift import Drift
from sim.memory import give_back_freed_memory
from sim.mesh_simplification import simplify_meshes
from sim.protocol import CONTROL_HZ, OFFICIAL, SETTLE_ACTION, Protocol
from sim.suites import Task, find_task

if TYPE_CHECKING:
    from sim.camera import Camera

CAMERA = "agentview"
# Radians, of each joint of the arm at the beginning of an episode: robosuite's default, with which LIBERO's official
# initial states were made (seven joints in five tasks deviate by 0.016 to 0.023); LIBERO's own environment has none.
_JOINT_NOISE = 0.02
# Object placement is rejection sampling that gives up at times; robosuite's own wrapper retries for ever.
_PLACEMENT_ATTEMPTS = 100

Observations = dict[str, np.ndarray]


class LiberoEnv(gymnasium.Env[Observations, np.ndarray]):
    """One LIBERO task.

    Observation: `{"image": uint8 [R, R, 3]}`, the agentview camera as robosuite renders it, upside down; an empty
    dict with `render=False`, which runs at the speed of the physics. Frames are taken at robosuite's moment, up to 4
    ms of simulated time before the step ends.
    Action: float `[7]` in [-1, 1], clipped by the controller: dx, dy, dz (1 is 5 cm), rotation vector (1 is 0.5 rad),
    gripper (-1 open, +1 close).
    Reward is 1 on success, else 0. `terminated` means the task's predicate holds at this very step; `truncated` means
    the step limit is reached (settle steps not counted). `info`: `success` (bool), `steps` (policy steps so far) and,
    after a reset, `init_state` (its number, or None after a random reset).

    picture_next: set it to False where the next steps' pictures are not needed; observations then keep the last one.
    task: number from 0. protocol: the official one unless a deviation is wanted.
    mesh_cell: metres, see `sim.mesh_simplification`: faster pictures, not quite the benchmark's, to train on and
    never to be judged by.
    Raises UnknownSuiteError, RenderingUnavailableError, and ValueError for a bad action or initial state.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012  (Gymnasium's contract)

    def __init__(
        self, suite: str, task: int, *, render: bool = True, protocol: Protocol = OFFICIAL, mesh_cell: float = 0.0
    ) -> None:
        self.task: Task = find_task(suite, task)
        self.protocol = protocol
        self.control_hz = protocol.control_hz
        self.step_limit = (protocol.step_limit or self.task.step_limit) * protocol.ticks_per_step
        self.rendered = render
        self.render_mode = "rgb_array" if render else None
        side = protocol.resolution
        image: dict[str, spaces.Space] = {"image": spaces.Box(0, 255, (side, side, 3), np.uint8)} if render else {}
        self.observation_space: spaces.Space[Any] = spaces.Dict(image)
        self.action_space = spaces.Box(-1.0, 1.0, (7,), np.float64)
        self.steps = 0
        self._initial_states = self.task.initial_states()
        self._image: np.ndarray | None = None
        self._frame_wanted = False
        self._ready = False
        self._drift: Drift | None = None
        self.picture_next = True
        self.simulator = self._build_simulator()
        self._shown = np.zeros(self.simulator.sim.model.nq)
        self._pictured = self._shown.copy()
        self._camera = self._build_camera(mesh_cell) if render else None
        self.renderer = rendering.renderer_name() if render else "none"
        give_back_freed_memory()
        # The GL context must go before the GL library shuts down, so registered after it and thus run before it.
        atexit.register(_close_if_alive, weakref.ref(self))

    @property
    def instruction(self) -> str:
        """What the robot is told."""
        return self.task.instruction

    @property
    def initial_state_count(self) -> int:
        """Number of official initial states of this task."""
        return len(self._initial_states)

    @property
    def hand_position(self) -> np.ndarray:
        """Position `[3]` of the point between the fingers, metres, world frame."""
        return np.array(self.simulator.sim.data.get_site_xpos("gripper0_grip_site"))

    def state(self) -> np.ndarray:
        """Simulator state, float64 `[1 + nq + nv]`: time, positions, velocities. Fixture poses are not in it."""
        return self.simulator.get_sim_state()

    @property
    def pictured_positions(self) -> np.ndarray:
        """Positions float64 `[nq]` that the newest frame shows, kept also where nothing is rendered, for `picture`."""
        return self._pictured

    def picture(
        self, positions: np.ndarray, before: np.ndarray, body_positions: np.ndarray, body_quaternions: np.ndarray
    ) -> np.ndarray:
        """The frame, uint8 `[R, R, 3]`, upside down, of a moment of an earlier episode of this task.

        positions: its `pictured_positions`, `[nq]`. before: the positions `[nq]` in which the step before it ended:
        LIBERO lights a stove after the step that turned its knob, when that step's frame is already taken.
        body_positions, body_quaternions: where the episode's reset put the model's bodies, `[bodies, 3]` and
        `[bodies, 4]`. The environment needs a `reset` before it can be stepped again.
        Raises RuntimeError with `render=False` and ValueError for arrays of another task.
        """
        if self._camera is None:
            raise RuntimeError("the environment has no camera; make it with render=True")
        import mujoco

        if self._image is None:
            self.reset(seed=0)  # until its first reset a world shows the gripper's markers and a glowing stove
        model, data = self.simulator.sim.model._model, self.simulator.sim.data._data
        if positions.shape != data.qpos.shape or body_positions.shape != model.body_pos.shape:
            has, got = (data.qpos.size, len(model.body_pos)), (positions.size, len(body_positions))
            raise ValueError(f"{self.task.suite} task {self.task.number} has {has} positions and bodies, got {got}")
        self._ready = False
        data.qpos[:] = before
        self.simulator._post_process()  # LIBERO's: shows or hides what glows
        model.body_pos[:], model.body_quat[:], data.qpos[:] = body_positions, body_quaternions, positions
        mujoco.mj_fwdPosition(model, data)
        return self._camera.take(model, data)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Starts an episode: an official initial state with `options={"init_state": i}`, else a random one.

        A random reset with the same seed (0 to 2^32 - 1) gives the same scene; without a seed it draws the next one
        of the environment's own random numbers. For official states the seed is the protocol's, whatever is given here.
        """
        super().reset(seed=seed)
        number = (options or {}).get("init_state")
        if unknown := set(options or {}) - {"init_state"}:
            raise ValueError(f"unknown reset options {sorted(unknown)}; the only one is 'init_state'")
        if number is None:
            self._reset_like_official(int(self.np_random.integers(2**32)) if seed is None else seed)
        else:
            if not 0 <= number < self.initial_state_count:
                where, last = f"{self.task.suite} task {self.task.number}", self.initial_state_count - 1
                raise ValueError(f"there is no init_state {number} in {where}; choose 0 to {last}")
            self._reset_simulator(self.protocol.simulator_seed)
            self.simulator.set_init_state(self._initial_states[number])
        self._drift = None
        self._settle()
        if self.protocol.drift_mm_s:
            first = 1.0 if (number or 0) % 2 else -1.0  # so that half the initial states set out to either side
            self._drift = Drift(self.simulator, self.protocol.drift_mm_s / 1e3, first)
        self.steps = 0
        self._ready = True
        return self._observations(), {"success": False, "steps": 0, "init_state": number}

    def step(self, action: np.ndarray) -> tuple[Observations, float, bool, bool, dict[str, Any]]:
        """Runs one control tick: 50 ms, or what the protocol's control rate makes of it."""
        if not self._ready:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        action = np.asarray(action, np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(f"action must be 7 finite numbers, got {action!r}")
        if self._drift is not None:
            self._drift.advance(1.0 / self.control_hz)
        success = self._advance(rescaled(action, self.control_hz), frame_wanted=self.picture_next)
        self.steps += 1
        info = {"success": success, "steps": self.steps}
        return self._observations(), float(success), success, not success and self.steps >= self.step_limit, info

    def render(self) -> np.ndarray | None:
        """The newest frame the right way up, uint8 `[R, R, 3]`; None with `render=False`."""
        return None if self._image is None else np.ascontiguousarray(self._image[::-1, ::-1])

    def close(self) -> None:
        """Frees the simulator and its GL context; may be called twice."""
        self._ready = False
        if self._camera is not None:
            self._camera.close()
            self._camera = None
        if self.simulator is not None:
            self.simulator.close()
            self.simulator = None
            gc.collect()  # robosuite's parts refer to each other in circles, and hold hundreds of megabytes
            give_back_freed_memory()

    def _build_simulator(self) -> Any:
        control_environment = rendering.load_control_environment()
        with _numpy_seed(self.protocol.simulator_seed), physics.compiling_once():
            simulator = _retry_placement(
                lambda: control_environment(
                    bddl_file_name=str(self.task.bddl_file),
                    has_offscreen_renderer=False,
                    use_camera_obs=False,
                    ignore_done=True,
                    control_freq=self.control_hz,
                )
            )
        physics.keep_only_camera(simulator.env, sample=self._take_wanted_frame)
        speed_up_arms(simulator.env)
        return simulator

    def _build_camera(self, mesh_cell: float) -> Camera:
        from sim.camera import Camera

        model = self.simulator.sim.model._model
        if mesh_cell:
            simplify_meshes(model, mesh_cell)
        return Camera(model, CAMERA, self.protocol.resolution)

    def _reset_simulator(self, seed: int) -> None:
        with _numpy_seed(seed):
            _retry_placement(self.simulator.env.reset)

    def _reset_like_official(self, seed: int) -> None:
        """Sets up a scene as official initial states are: things and the arm's joints, with noise, as one reset made
        them, among fixtures where another one put them.
        """
        random = np.random.default_rng(seed)
        self._reset_simulator(seed)
        state = self.state()
        joints = self.simulator.env.robots[0]._ref_joint_pos_indexes
        state[1 + np.asarray(joints)] += random.normal(scale=_JOINT_NOISE, size=len(joints))
        self._reset_simulator(int(random.integers(2**32)))
        self.simulator.set_init_state(state)

    def _settle(self) -> None:
        count = self.protocol.settle_steps * self.protocol.ticks_per_step
        for done in range(count):
            self._advance(SETTLE_ACTION, frame_wanted=done == count - 1)
        if count == 0:
            self._shown[:] = self.simulator.sim.data.qpos
            self._take_frame()

    def _advance(self, action: np.ndarray, *, frame_wanted: bool) -> bool:
        """One control step; True if the task is solved at its end."""
        self._frame_wanted = frame_wanted
        with physics.shared_forward_passes(self.simulator.sim, self._shown):
            _, _, solved, _ = self.simulator.step(action)
        return bool(solved)

    def _take_wanted_frame(self) -> None:
        if self._frame_wanted:
            self._frame_wanted = False
            self._take_frame()

    def _take_frame(self) -> None:
        self._pictured = self._shown.copy()
        if self._camera is not None:
            sim = self.simulator.sim
            self._image = self._camera.take(sim.model._model, sim.data._data)

    def _observations(self) -> Observations:
        return {} if self._image is None else {"image": self._image}


@contextlib.contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seeds numpy's global generator, which robosuite samples from, and gives the caller's state back afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def _retry_placement(attempt: Callable[[], Any]) -> Any:
    from robosuite.utils.errors import RandomizationError

    for _ in range(_PLACEMENT_ATTEMPTS - 1):
        try:
            return attempt()
        except RandomizationError:
            continue
    return attempt()


def _close_if_alive(reference: weakref.ref[LiberoEnv]) -> None:
    environment = reference()
    if environment is not None:
        environment.close()
