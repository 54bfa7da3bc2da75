"""The types that travel between a robot or simulator and a policy. Only numpy is imported: a client needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

ACTION_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")


@dataclass(frozen=True, slots=True)
class Observation:
    """One camera frame and what the robot is asked to do.

    image: uint8 `[H, W, 3]` RGB, exactly as the camera gives it (no rotation, no resize: the policy does that).
    instruction: plain text, any case.
    captured_at: seconds on the *sender's* monotonic clock; receivers echo it and never compare it with their own clock.
    """

    image: np.ndarray
    instruction: str
    captured_at: float = 0.0

    def __post_init__(self) -> None:
        image = self.image
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(f"image must be a uint8 array [H, W, 3] (RGB), got {found}")
        if min(image.shape[:2]) < 16 or max(image.shape[:2]) > 4096:
            raise ValueError(f"image sides must be 16..4096 pixels, got {image.shape[0]}x{image.shape[1]}")
        if not self.instruction.strip():
            raise ValueError("instruction is empty; give the task in words, e.g. 'pick up the milk'")


@dataclass(frozen=True, slots=True)
class DecodeTrace:
    """How one action came about.

    target_passes: forward passes of the target language model, the prefill counted (plain decoding of 7 tokens: 7).
    accepted_per_pass: tokens gained by each of these passes; sums to the number of action tokens.
    drafters: name of the drafter behind each pass, several joined by "+", "" where nothing drafted was accepted.
    deviation_bins: per action dimension, emitted bin minus the target's own choice, in bins (0 under exact decoding).
    stage_ms: milliseconds per stage (preprocess, vision, prefill, decode, postprocess) on this process's clock.
    sources: per action dimension, the drafter whose token was accepted there, "" where the target was asked.
    forced: why a tolerant acceptance rule decoded this action exactly, in words of the rule; empty as a rule.
    """

    target_passes: int
    accepted_per_pass: tuple[int, ...] = ()
    drafters: tuple[str, ...] = ()
    deviation_bins: tuple[int, ...] = ()
    stage_ms: dict[str, float] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    forced: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Action:
    """One 7-DoF action in the units of the dataset that `unnorm_key` names.

    values: float32 `[7]`: dx, dy, dz, droll, dpitch, dyaw, gripper (OpenVLA's convention: 1 = open, 0 = closed).
    tokens: int64 `[7]`, the action token ids the model emitted; empty for policies without tokens.
    """

    values: np.ndarray
    tokens: np.ndarray
    trace: DecodeTrace

    def __post_init__(self) -> None:
        if self.values.shape != (len(ACTION_NAMES),) or not np.isfinite(self.values).all():
            raise ValueError(f"action must be {len(ACTION_NAMES)} finite values {ACTION_NAMES}, got {self.values!r}")


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """What a policy is, exchanged once in the handshake; a mismatch there is refused, not warned about.

    policy_id: human-readable name (checkpoint directory or hub id).
    checkpoint_hash: hex digest over the weights' and configurations' bytes, or "" where there are no weights.
    unnorm_key: dataset whose statistics un-normalise the actions.
    image_path: "libero" (rotate, JPEG, Lanczos, centre crop) or "processor" (resize only).
    prompt_template: the template with `{instruction}`.
    control_hz: rate the actions were recorded at, in hertz; 0 where unknown.
    decoder: name of the decoding configuration. decoding_digest: of its settings, "" for plain decoding.
    privileged: True where the policy reads simulator state and so must never be reported as a camera policy.
    """

    policy_id: str
    checkpoint_hash: str = ""
    unnorm_key: str = ""
    action_names: tuple[str, ...] = ACTION_NAMES
    image_size: tuple[int, int] = (224, 224)
    image_path: str = "libero"
    prompt_template: str = ""
    control_hz: float = 20.0
    decoder: str = "autoregressive"
    device: str = "cpu"
    dtype: str = "float32"
    privileged: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    decoding_digest: str = ""


class DeviceLostError(RuntimeError):
    """The policy's device has failed for good, as a GPU after an illegal access: only a new process helps."""


@runtime_checkable
class ActionPolicy(Protocol):
    """What a control loop or an evaluation needs of a policy; met in process and through the bridge alike."""

    @property
    def spec(self) -> PolicySpec: ...

    def reset(self) -> None:
        """A new episode starts: forget whatever was kept of the last one."""

    def act(self, observation: Observation) -> Action: ...

    def close(self) -> None: ...
