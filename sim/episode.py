"""One episode: a policy and a world taking turns until the task is solved or the steps run out.

Knows the conversion between the policy's actions and the simulator's. Does not know processes, files or sockets, and
lets every exception through: what an error means is for the caller to say.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from policy.types import Action, ActionPolicy, DecodeTrace, Observation
from sim.environments import World

# The world waits for the policy, as in all published LIBERO figures.
LOCK_STEP = "lock-step"

# Stands in where nothing is rendered; only privileged policies, which look at no picture, get to see it.
NO_IMAGE = np.zeros((16, 16, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """How an episode went.

    steps: policy steps taken.
    decision_ms: milliseconds from handing over the observation to having the action, per step.
    traces: how the policy decoded each action.
    """

    success: bool
    steps: int
    decision_ms: tuple[float, ...]
    traces: tuple[DecodeTrace, ...]


def run_episode(
    env: World, policy: ActionPolicy, init_state: int, watch: Callable[[np.ndarray], None] | None = None
) -> EpisodeResult:
    """Runs the episode that starts at official initial state `init_state`, on the lock-step clock.

    watch: is called with every camera frame the policy gets, and with the last one, uint8 `[R, R, 3]`, upside down.
    Raises ValueError where a camera policy meets a world without rendering.
    """
    if not env.rendered and not policy.spec.privileged:
        raise ValueError(f"policy {policy.spec.policy_id!r} needs a camera; make the environment with render=True")
    observations, _ = env.reset(options={"init_state": init_state})
    policy.reset()
    decision_ms: list[float] = []
    traces: list[DecodeTrace] = []
    terminated = truncated = False
    while not (terminated or truncated):
        image = observations.get("image", NO_IMAGE)
        if watch:
            watch(image)
        started = time.perf_counter()
        action = policy.act(Observation(image, env.instruction, captured_at=time.monotonic()))
        decision_ms.append(1e3 * (time.perf_counter() - started))
        traces.append(action.trace)
        observations, _, terminated, truncated, _ = env.step(simulator_action(action))
    if watch:
        watch(observations.get("image", NO_IMAGE))
    return EpisodeResult(terminated, len(decision_ms), tuple(decision_ms), tuple(traces))


def simulator_action(action: Action) -> np.ndarray:
    """A policy's action as LIBERO takes it, float64 `[7]`.

    The pose is passed on as it is. OpenVLA's gripper (1 = open, 0 = closed) is made binary and turned round to the
    simulator's (-1 = open, +1 = closed): g' = -sign(2g - 1), as `normalize_gripper_action` and `invert_gripper_action`
    of the original do one after the other.
    """
    values = np.asarray(action.values, np.float64).copy()
    values[6] = -np.sign(2.0 * values[6] - 1.0)
    return values
