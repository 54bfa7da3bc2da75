"""Records demonstrations: a driver moves the arm, the expert says what it would do, and both are kept.

Knows the environment, the expert and the format; knows nothing of processes (`sim.collection`) or of training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from zlib import crc32

import numpy as np

from policy.openvla.images import encode_frame
from policy.results import versions
from policy.training.demonstrations import Demonstration, DemonstrationMeta
from policy.types import Action, DecodeTrace, Observation
from sim.episode import NO_IMAGE
from sim.expert import Expert, make_expert
from sim.expert.expert import to_openvla
from sim.libero import LiberoEnv
from sim.noise import BurstNoise
from sim.schedule import FIRST_TRAINING_SEED
from sim.waiting import simulator_action

_NO_TOKENS, _NO_DECODING = np.zeros(0, np.int64), DecodeTrace(target_passes=0)

Driver = Callable[[Observation, np.ndarray], np.ndarray]
"""From what the camera sees and the expert's label float32 `[7]` to the action to execute, in the same convention."""


def follow_expert(observation: Observation, label: np.ndarray) -> np.ndarray:
    """The driver that does what the expert says."""
    return label


def record_episode(
    env: LiberoEnv,
    seed: int,
    *,
    driver: Driver = follow_expert,
    driver_name: str = "expert",
    noise: BurstNoise | None = None,
    stride: int = 1,
    most_steps: int | None = None,
) -> Demonstration:
    """Run one episode from a random reset and record it until success, or the task's step limit or `most_steps`.

    An environment that does not render gives an episode without frames, ten times as fast; `render_frames` adds them.
    Official initial states cannot be recorded: they are what policies are measured on.
    stride: keeps and renders one control step in so many, the first one chosen by the seed. Neighbouring frames differ
    little, so frames of more episodes teach more where rendering is what takes time.
    Raises ValueError for a seed below FIRST_TRAINING_SEED and for a driver, which needs to see, without rendering.
    """
    if seed < FIRST_TRAINING_SEED:
        raise ValueError(f"seed {seed} is kept for evaluation; demonstrations use {FIRST_TRAINING_SEED} and above")
    if stride < 1 or (stride > 1 and driver is not follow_expert):
        raise ValueError(f"stride must be 1, or more with the expert as driver, got {stride} with {driver_name!r}")
    if not env.rendered and driver is not follow_expert:
        raise ValueError(f"driver {driver_name!r} needs to see; make the environment with render=True")
    offset = seed % stride
    observed, _ = env.reset(seed=seed)
    expert = make_expert(env)
    rows = _Rows()
    disturbances = None if noise is None else noise.stream(np.random.default_rng(_noise_seed(env, seed)))
    success = over = False
    while not over:
        label = to_openvla(expert.act())
        image = observed["image"] if env.rendered else NO_IMAGE
        values = np.array(driver(Observation(image, env.instruction), label), np.float32)
        if disturbances is not None:
            values[:6] += next(disturbances)
        values[:6] = np.clip(values[:6], -1.0, 1.0)
        action = simulator_action(Action(values, _NO_TOKENS, _NO_DECODING))
        if env.steps % stride == offset:
            jpeg = encode_frame(image) if env.rendered else b""
            seen = privileged(expert), env.state(), env.pictured_positions
            rows.append(jpeg, label, to_openvla(action), *seen)
        env.picture_next = (env.steps + 1) % stride == offset
        observed, _, success, truncated, _ = env.step(action)
        over = success or truncated or env.steps == most_steps
    meta = DemonstrationMeta(
        suite=env.task.suite,
        task=env.task.number,
        instruction=env.instruction,
        seed=seed,
        success=bool(success),
        driver=driver_name,
        noise=noise.sigma if noise is not None else 0.0,
        renderer=env.renderer,
        versions=versions(),
        stride=stride,
    )
    return rows.demonstration(meta, *expert.state.body_poses())


def render_frames(env: LiberoEnv, demonstration: Demonstration) -> Demonstration:
    """The episode with its frames rendered anew by `env`, an environment of the same task that renders.

    They are those that recording with rendering would have stored, as far as the GL renderer is the same. `env` needs a
    reset before it can be stepped again.
    """
    demonstration.require_every_step()  # a stove's glow follows from the step before
    bodies = demonstration.body_positions, demonstration.body_quaternions
    pictured = demonstration.pictured
    ends = demonstration.states[:-1, 1 : 1 + pictured.shape[1]]
    before = [pictured[0], *ends]  # nothing moves any more when the settling ends
    streams = [encode_frame(env.picture(now, then, *bodies)) for now, then in zip(pictured, before, strict=True)]
    return replace(
        demonstration,
        meta=replace(demonstration.meta, renderer=env.renderer),
        jpeg=np.frombuffer(b"".join(streams), np.uint8),
        jpeg_offsets=np.cumsum([0, *map(len, streams)], dtype=np.int64),
    )


def privileged(expert: Expert) -> np.ndarray:
    """What training may additionally predict, float32 `[10]`: see `policy.training.demonstrations.PRIVILEGED_NAMES`.

    Object and goal are those of the expert's last decision (`Expert.focus`), which follows the present sub-goal; where
    the task names only one thing, the goal is where the object is.
    """
    state = expert.state
    hand = state.hand_position
    moved, goal = map(state.position, expert.focus)
    return np.array([*hand, state.finger_gap, *(moved - hand), *(goal - moved)], np.float32)


class _Rows:
    """The rows of an episode while it is recorded."""

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._columns: dict[str, list[np.ndarray]] = {
            name: [] for name in ("actions", "executed", "privileged", "states", "pictured")
        }

    def append(self, jpeg: bytes, *row: np.ndarray) -> None:
        self._frames.append(jpeg)
        for column, value in zip(self._columns.values(), row, strict=True):
            column.append(value)

    def demonstration(
        self, meta: DemonstrationMeta, body_positions: np.ndarray, body_quaternions: np.ndarray
    ) -> Demonstration:
        columns: dict[str, Any] = {name: np.stack(column) for name, column in self._columns.items()}
        return Demonstration(
            meta,
            jpeg=np.frombuffer(b"".join(self._frames), np.uint8),
            jpeg_offsets=np.cumsum([0, *map(len, self._frames)], dtype=np.int64),
            body_positions=body_positions,
            body_quaternions=body_quaternions,
            **columns,
        )


def _noise_seed(env: LiberoEnv, seed: int) -> tuple[int, int, int]:
    """Every episode has its own noise: tasks that share a seed must not share their disturbances."""
    return seed, env.task.number, crc32(env.task.suite.encode())
