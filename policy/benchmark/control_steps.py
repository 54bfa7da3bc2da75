"""Control steps of one arrangement, image in host memory to action in host memory, on logged frames in order.

Knows what is noted of a step and how notes become a row of the table. Knows nothing of what is compared.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from policy.benchmark.cost import Machine, StepCost
from policy.benchmark.subject import Arrangement, Episode, Subject
from policy.decoding.physical import ActionUnits
from policy.openvla.config import ACTION_BINS
from policy.runtime import Policy
from policy.types import Observation

STAGES = ("preprocess", "vision", "prefill", "decode", "postprocess")


@dataclass(frozen=True, slots=True)
class Steps:
    """What is noted of a run; all that a row needs, so that a run need not be repeated.

    milliseconds: of each step. stages: each step's split. passes: of the target. tokens: ids `[steps][7]`.
    start_s: seconds to build, arrange and warm. memory_gb: most that PyTorch held of the GPU's memory, graphs included.
    """

    arrangement: str
    milliseconds: list[float]
    stages: list[dict[str, float]]
    passes: list[int]
    tokens: list[list[int]]
    start_s: float
    memory_gb: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_steps(subject: Subject, arrangement: Arrangement, episodes: Sequence[Episode]) -> Steps:
    """Run all frames of all episodes but the first, which warms: it is played once to load kernels and record graphs,
    and then forgotten.
    """
    if subject.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(subject.device)
    began = time.perf_counter()
    policy = subject.policy(arrangement)
    policy.warm()
    if arrangement.capture and subject.device.type == "cuda":
        policy.rehearse()
    _play(policy, episodes[0])
    start_s = time.perf_counter() - began
    played = [step for episode in episodes[1:] for step in _play(policy, episode)]
    policy.close()
    memory = torch.cuda.max_memory_reserved(subject.device) / 1e9 if subject.device.type == "cuda" else None
    milliseconds, stages, passes, tokens = (list(column) for column in zip(*played, strict=True))
    return Steps(arrangement.name, milliseconds, stages, passes, tokens, start_s, memory)


def _play(policy: Policy, episode: Episode) -> list[tuple[float, dict[str, float], int, list[int]]]:
    policy.reset(episode.name)
    steps = []
    for frame in episode.frames:
        observation = Observation(frame, episode.instruction)
        began = time.perf_counter()
        action = policy.act(observation, episode.name)  # its tokens are on the host, so nothing is still running
        milliseconds = 1e3 * (time.perf_counter() - began)
        policy.rest()  # as a server's policy does while the robot moves
        steps.append((milliseconds, action.trace.stage_ms, action.trace.target_passes, action.tokens.tolist()))
    policy.reset(episode.name)
    return steps


def row_of(steps: Steps, machine: Machine, cost: StepCost) -> dict[str, Any]:
    """Times, passes and the distance from the bound, flat."""
    times = np.array(steps.milliseconds)
    passes = float(np.mean(steps.passes))
    bound = cost.bound_ms(machine, passes)
    p50, p95, p99 = np.percentile(times, (50, 95, 99))
    stages = {f"{stage}_ms": float(np.mean([row.get(stage, 0.0) for row in steps.stages])) for stage in STAGES}
    return {
        "row": steps.arrangement,
        "steps": len(times),
        "mean_ms": float(times.mean()),
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "p99_ms": float(p99),
        "max_ms": float(times.max()),
        **stages,
        "passes": passes,
        "bound_ms": bound,
        "percent_of_bound": 100 * bound / float(times.mean()),
        "start_s": steps.start_s,
        "memory_gb": steps.memory_gb,
    }


def compared(steps: Steps, reference: Steps, units: ActionUnits, action_vocabulary: int) -> dict[str, float]:
    """How far the actions are from the reference's on the same frames: tokens that are equal, and mean and 99th
    percentile of the larger deviation of any axis, in mm and mrad.
    """
    ids, expected = np.array(steps.tokens), np.array(reference.tokens)
    own, bins = (np.clip(action_vocabulary - 1 - tokens, 0, ACTION_BINS - 1) for tokens in (ids, expected))
    deviations = np.abs(units.deviations(own, bins))
    millimetres, milliradians = deviations[:, :3].max(axis=1), deviations[:, 3:6].max(axis=1)
    return {
        "token_agreement": float((ids == expected).mean()),
        "action_agreement": float((ids == expected).all(axis=1).mean()),
        "deviation_mm": float(millimetres.mean()),
        "deviation_mm_p99": float(np.percentile(millimetres, 99)),
        "deviation_mrad": float(milliradians.mean()),
        "deviation_mrad_p99": float(np.percentile(milliradians, 99)),
    }
