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

from policy.decoding.prompt_batch import PromptBatch, Sight
from policy.openvla.images import PreprocessorSettings, center_crop, decode_frame, processor_pixel_values
from policy.openvla.model import OpenVLA
from policy.openvla.prompt import Prompter
from policy.training.demonstrations import Demonstration
from policy.training.episode_reader import SizedEpisode

_FRAMES_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class LoggedEpisode:
    """One episode as the language model reads it.

    name: its file's, or as its data set tells it. prompt: token ids of the instruction.
    features: projected patches `[T, 256, width]` on the model's device.
    frames: uint8 `[T, 224, 224, 3]`, for drafters that look for themselves. settings: how these are normalised.
    """

    name: str
    instruction: str
    prompt: list[int]
    features: Tensor
    frames: np.ndarray
    settings: PreprocessorSettings

    @classmethod
    def load(
        cls,
        path: Path,
        model: OpenVLA,
        prompter: Prompter,
        settings: PreprocessorSettings,
        steps: int | None = None,
    ) -> LoggedEpisode:
        """Read a demonstration and look at its first `steps` frames, or all.

        Raises DemonstrationError for a file that is none, has no frames or leaves out steps.
        """
        demonstration = Demonstration.load(path)
        demonstration.require_every_step()
        count = len(demonstration) if steps is None else min(steps, len(demonstration))
        frames = np.stack([center_crop(decode_frame(demonstration.frame_jpeg(step))) for step in range(count)])
        episode = SizedEpisode(path.name, demonstration.meta.instruction, frames)
        return cls.of(episode, model, prompter, settings, steps)

    @classmethod
    @torch.inference_mode()
    def of(
        cls,
        episode: SizedEpisode,
        model: OpenVLA,
        prompter: Prompter,
        settings: PreprocessorSettings,
        steps: int | None = None,
    ) -> LoggedEpisode:
        """Look at the first `steps` frames of an episode that was read already, or at all."""
        frames = episode.frames[:steps]
        features = [
            model.image_features(_pixels(frames[first : first + _FRAMES_AT_ONCE], settings).to(model.device))
            for first in range(0, len(frames), _FRAMES_AT_ONCE)
        ]
        prompt = prompter.token_ids(episode.instruction)
        return cls(episode.name, episode.instruction, prompt, torch.cat(features), frames, settings)

    def __len__(self) -> int:
        return len(self.features)

    def pixels(self, step: int) -> Tensor:
        """The network's input `[1, 6, 224, 224]` for one frame, on the host."""
        return _pixels(self.frames[step : step + 1], self.settings)


def replay(model: OpenVLA, episodes: Sequence[LoggedEpisode]) -> Iterator[tuple[PromptBatch, list[str]]]:
    """Step by step, the prompts of all episodes that still run and their names, which serve as sessions."""
    for step in range(max(map(len, episodes), default=0)):
        running = [episode for episode in episodes if step < len(episode)]
        features = torch.stack([episode.features[step] for episode in running])
        pixels = torch.cat([episode.pixels(step) for episode in running])
        sight = Sight(pixels.to(model.device), tuple(episode.instruction for episode in running))
        prompts = PromptBatch.embed(model, [episode.prompt for episode in running], features, sight)
        yield prompts, [episode.name for episode in running]


def _pixels(frames: np.ndarray, settings: PreprocessorSettings) -> Tensor:
    """`[B, 6, 224, 224]` of frames uint8 `[B, 224, 224, 3]`."""
    return torch.from_numpy(np.stack([processor_pixel_values(frame, settings) for frame in frames]))
