"""What is measured: a checkpoint's policy, as it is or widened to OpenVLA-7B's sizes, and the frames it is shown.

Knows how to make a fresh policy for every arrangement, as an arrangement changes a model for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import simplejpeg
import torch

from policy.acceleration.plan import Acceleration, accelerate
from policy.benchmark.transformers_decoder import TransformersDecoder
from policy.decoding.capture import GraphRecorder, capture_passes
from policy.decoding.config import DecodingConfig
from policy.decoding.physical import controller_of
from policy.drafting.registry import DrafterMaterial
from policy.openvla.action_tokens import ActionStatistics, load_statistics, resolve_unnorm_key
from policy.openvla.checkpoint import checkpoint_hash, load_checkpoint
from policy.openvla.config import OpenVLAConfig
from policy.openvla.images import PreprocessorSettings
from policy.openvla.model import OpenVLA
from policy.openvla.prompt import Prompter
from policy.runtime import Policy, describe_policy
from policy.training.demonstrations import Demonstration
from policy.training.widen import OPENVLA_7B_SIZES, widened

Shape = Literal["own", "7b"]
TRANSFORMERS = "transformers"


@dataclass(frozen=True, slots=True)
class Arrangement:
    """One row of the table.

    decoding: a name or file of `configs/decoding`, or "transformers". acceleration: how the network is arranged.
    capture: whether passes are replayed as CUDA graphs, where there is a GPU.
    """

    name: str
    decoding: str
    acceleration: Acceleration
    capture: bool = True


@dataclass(frozen=True, slots=True)
class Episode:
    """Camera frames uint8 `[T, H, W, 3]` as a simulator gives them, and what the robot was asked."""

    name: str
    instruction: str
    frames: np.ndarray

    @classmethod
    def load(cls, path: Path, steps: int) -> Episode:
        """The first `steps` frames of a demonstration, or all it has. They were stored as JPEG, which costs some noise.

        Raises DemonstrationError for a file that is none, has no frames or leaves out steps.
        """
        demonstration = Demonstration.load(path)
        demonstration.require_every_step()
        count = min(steps, len(demonstration))
        # Demonstrations store frames turned by 180 degrees, as the network reads them.
        frames = [simplejpeg.decode_jpeg(demonstration.frame_jpeg(step))[::-1, ::-1] for step in range(count)]
        return cls(path.name, demonstration.meta.instruction, np.ascontiguousarray(np.stack(frames)))


@dataclass(frozen=True, slots=True)
class Subject:
    """A checkpoint directory on a device. shape: "7b" widens its network to the sizes of the published OpenVLA-7B."""

    directory: Path
    device: torch.device
    dtype: torch.dtype
    shape: Shape
    unnorm_key: str | None = None

    def model(self) -> OpenVLA:
        """A fresh network on the device; widening happens there, without a file."""
        model = load_checkpoint(self.directory, self.device, self.dtype)
        return model if self.shape == "own" else widened(model, OPENVLA_7B_SIZES)

    def target_config(self) -> OpenVLAConfig:
        """The network's sizes, without making it."""
        own = load_checkpoint(self.directory, "meta", self.dtype).config
        return own if self.shape == "own" else OPENVLA_7B_SIZES.of(own)

    def statistics(self) -> ActionStatistics:
        datasets = load_statistics(self.directory)
        return datasets[resolve_unnorm_key(datasets, self.unnorm_key)]

    def policy(self, arrangement: Arrangement) -> Policy:
        """A policy that is arranged so; neither warmed nor tested."""
        model = self.model()
        capture = arrangement.capture and self.device.type == "cuda"
        accelerate(model, arrangement.acceleration)
        if capture:
            capture_passes(model)
        prompter = Prompter(self.directory, maximum_tokens=model.config.maximum_tokens)
        key = resolve_unnorm_key(load_statistics(self.directory), self.unnorm_key)
        spec = describe_policy(self.directory.name, checkpoint_hash(self.directory), key, "auto", model, prompter)
        statistics = self.statistics()
        settings, recorder = PreprocessorSettings.load(self.directory), GraphRecorder if capture else None
        record, compiled = recorder() if recorder else None, arrangement.acceleration.compiled
        policy = Policy(model, prompter, statistics, settings, spec, record, compiled)
        if arrangement.decoding == TRANSFORMERS:
            policy.decode_with(TransformersDecoder(model))
        else:
            controller = controller_of(key)
            material = DrafterMaterial(model, statistics, self.directory, recorder=recorder, controller=controller)
            policy.decode_with(DecodingConfig.load(arrangement.decoding).build(material))
        return policy

    def longest_prompt(self, episodes: Sequence[Episode]) -> int:
        """Text tokens of the longest instruction's prompt."""
        prompter = Prompter(self.directory)
        return max(len(prompter.token_ids(episode.instruction)) for episode in episodes)
