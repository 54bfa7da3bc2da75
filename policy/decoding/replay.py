"""Logged episodes as a decoder meets them: the prompts of many episodes side by side, step by step.

Knows demonstration files and the image path of training. Knows nothing of what is decoded or compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from policy.decoding.prompt_batch import PromptBatch
from policy.openvla.images import PreprocessorSettings, center_crop, decode_frame, processor_pixel_values
from policy.openvla.model import OpenVLA
from policy.openvla.prompt import Prompter
from policy.training.demonstrations import Demonstration

_FRAMES_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class LoggedEpisode:
    """One episode as the language model reads it.

    name: its file's. prompt: token ids. features: projected patches `[T, 256, width]` on the model's device.
    """

    name: str
    prompt: list[int]
    features: Tensor

    @classmethod
    @torch.inference_mode()
    def load(
        cls,
        path: Path,
        model: OpenVLA,
        prompter: Prompter,
        settings: PreprocessorSettings,
        steps: int | None = None,
    ) -> LoggedEpisode:
        """Read a demonstration and look at its first `steps` frames, or all.

        Raises DemonstrationError for a file that is none or has no frames.
        """
        demonstration = Demonstration.load(path)
        count = len(demonstration) if steps is None else min(steps, len(demonstration))
        features = []
        for first in range(0, count, _FRAMES_AT_ONCE):
            chunk = range(first, min(first + _FRAMES_AT_ONCE, count))
            frames = (center_crop(decode_frame(demonstration.frame_jpeg(step))) for step in chunk)
            pixels = np.stack([processor_pixel_values(frame, settings) for frame in frames])
            features.append(model.image_features(torch.from_numpy(pixels).to(model.device)))
        return cls(path.name, prompter.token_ids(demonstration.meta.instruction), torch.cat(features))

    def __len__(self) -> int:
        return len(self.features)


def replay(model: OpenVLA, episodes: Sequence[LoggedEpisode]) -> Iterator[tuple[PromptBatch, list[str]]]:
    """Step by step, the prompts of all episodes that still run and their names, which serve as sessions."""
    for step in range(max(map(len, episodes), default=0)):
        running = [episode for episode in episodes if step < len(episode)]
        features = torch.stack([episode.features[step] for episode in running])
        prompts = PromptBatch.embed(model, [episode.prompt for episode in running], features)
        yield prompts, [episode.name for episode in running]
