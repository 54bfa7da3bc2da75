"""The target as a drafter's teacher: what it does on a frame, and its hidden states on the way.

Actions are small and may be kept (`ActionBook`); hidden states are made anew for every batch, since those of one frame
are megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policy.decoding.cache import CachePool
from policy.decoding.prompt_batch import PromptBatch
from policy.decoding.target_passes import TargetPasses
from policy.decoding.tree import DRAFTED_DIMENSIONS, Draft, TokenTree
from policy.hardware import mixed_precision
from policy.openvla.config import ACTION_BINS, ACTION_DIMENSIONS
from policy.openvla.images import PreprocessorSettings
from policy.openvla.model import OpenVLA
from policy.openvla.prompt import Prompter
from policy.training.frame_library import FrameLibrary

_UNKNOWN = -1


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """Float32, of B frames. embeddings, hidden: `[B, S, width]`, the prompts' input and hidden states behind the final
    norm. lengths: int64 `[B]`. features: `[B, 7, width]`, the hidden states that chose the bins, int64 `[B, 7]`.
    """

    embeddings: Tensor
    hidden: Tensor
    lengths: Tensor
    features: Tensor
    bins: Tensor


class Teacher:
    """Inference only. settings: how the target's pixels are normalised."""

    def __init__(self, model: OpenVLA, prompter: Prompter, settings: PreprocessorSettings) -> None:
        self.model = model
        self.prompter = prompter
        self._caches = CachePool(model)
        self._means, self._stds = (
            torch.tensor(colours, device=model.device).view(1, -1, 1, 1) for colours in (settings.means, settings.stds)
        )

    @property
    def device(self) -> torch.device:
        return self.model.device

    def mixed_precision(self) -> torch.autocast:
        """For students: they are float32 and compute in bfloat16 on a GPU. The target itself runs as it serves."""
        return mixed_precision(self.device)

    def normalize(self, pictures: Tensor) -> Tensor:
        """Pixel values `[B, 6, 224, 224]` of pictures `[B, 3, 224, 224]` in 0..1."""
        return (pictures.repeat(1, self._means.shape[1] // 3, 1, 1) - self._means) / self._stds

    def pixels(self, frames: Tensor) -> Tensor:
        """The same of frames uint8 `[B, 224, 224, 3]`."""
        return self.normalize(frames.to(self.device).permute(0, 3, 1, 2).float() / 255)

    def prompt_ids(self, instructions: Sequence[str]) -> list[list[int]]:
        return [self.prompter.token_ids(text) for text in instructions]

    @torch.no_grad()
    def prompts(self, frames: Tensor, instructions: Sequence[str]) -> PromptBatch:
        features = self.model.image_features(self.pixels(frames))
        return PromptBatch.embed(self.model, self.prompt_ids(instructions), features)

    @torch.no_grad()
    def lesson(self, prompts: PromptBatch) -> Lesson:
        """Greedy decoding that keeps all hidden states: the prompts' pass and six small ones."""
        passes = TargetPasses(self.model, prompts, 0, self._caches, keeps_prompt=True)
        nothing = self._no_tree(len(prompts.lengths))
        decided = torch.zeros(len(prompts.lengths), DRAFTED_DIMENSIONS, dtype=torch.int64, device=self.device)
        ids, features = [], []
        logits = passes.prefill(nothing)
        for dimension in range(ACTION_DIMENSIONS):
            ids.append(logits[:, 0].argmax(dim=-1))
            features.append(passes.hidden[:, 0])
            if dimension < DRAFTED_DIMENSIONS:
                decided[:, dimension] = ids[-1]
                logits = passes.extend(decided, torch.full_like(prompts.lengths, dimension + 1), nothing)
        # An id that is no action token counts as the nearest bin, as it does for the robot.
        bins = (self.model.config.action_vocabulary - 1 - torch.stack(ids, dim=1)).clamp(0, ACTION_BINS - 1)
        states = (prompts.embeddings, passes.prompt_hidden, torch.stack(features, dim=1))
        embeddings, hidden, chosen = (state.float() for state in states)
        return Lesson(embeddings, hidden, prompts.lengths, chosen, bins)

    def _no_tree(self, batch: int) -> TokenTree:
        return TokenTree.of([Draft()] * batch, 0, self.device)


class ActionBook:
    """The target's actions on a library's frames, asked for when they are first needed."""

    def __init__(self, library: FrameLibrary, teacher: Teacher) -> None:
        self.library = library
        self._teacher = teacher
        self.known = torch.full((len(library), ACTION_DIMENSIONS), _UNKNOWN, dtype=torch.int16)

    def look_up(self, rows: Tensor) -> Tensor:
        """Bins int64 `[B, 7]` on the teacher's device for rows int64 `[B]`."""
        if (self.known[rows] == _UNKNOWN).any():
            prompts = self._teacher.prompts(self.library.frames(rows), self.library.texts(rows))
            self.known[rows] = self._teacher.lesson(prompts).bins.to("cpu", torch.int16)
        return self.known[rows].long().to(self._teacher.device)

    def by_episode(self) -> dict[str, Tensor]:
        """What is known, int16 `[T, 7]` by an episode's digest."""
        return {digest: self.known[rows].clone() for digest, rows in self.library.rows_by_digest.items()}

    def take_over(self, actions: Mapping[str, Tensor]) -> None:
        """Of what `by_episode` of another run gave, that on episodes which are here, too."""
        for digest, rows in self.library.rows_by_digest.items():
            if digest in actions:
                self.known[rows] = actions[digest]
