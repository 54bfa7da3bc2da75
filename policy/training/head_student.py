"""Teaches a draft head: it is given the target's hidden states and learns what the next ones are.

Knows the losses. What is published differs in that it supervised one step from true features only, with earlier action
tokens masked out and the loss divided by padding. Here a head drafts as it does in serving: behind a random number of
decided tokens, from its own features, each supervised position counting once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from policy.decoding.tree import DRAFTED_DIMENSIONS
from policy.drafting.action_rows import ActionRows
from policy.drafting.eagle import EagleHead
from policy.drafting.head_checkpoint import save_head
from policy.drafting.head_network import EAGLE, ROWS, Decided, HeadConfig, HeadNetwork
from policy.drafting.parallel import ParallelHead
from policy.training.drafter_config import DrafterTrainingConfig
from policy.training.teacher import ActionBook, Lesson, Teacher


class HeadStudent:
    """Satisfies `policy.training.drafter_training.Student`."""

    start = 1  # the prompt's own pass tells the first token

    def __init__(self, config: DrafterTrainingConfig, teacher: Teacher) -> None:
        self._config = config
        self._teacher = teacher
        sizes = replace(teacher.model.config.language, layers=1)
        self.network: nn.Module = HeadNetwork(HeadConfig(config.kind, sizes)).to(teacher.device)
        rows = ActionRows.of(teacher.model)
        self._rows = ActionRows(rows.embedding.float(), rows.head.float())

    def losses(self, network: nn.Module, book: ActionBook, rows: Tensor) -> dict[str, Tensor]:
        assert isinstance(network, HeadNetwork)
        lesson = self._lesson(book, rows)
        with self._teacher.mixed_precision():
            predicted, dimensions = self._predict(network, self._with_noise(lesson))
        predicted = predicted.float()
        counted = dimensions < DRAFTED_DIMENSIONS
        dimensions = dimensions.clamp(max=DRAFTED_DIMENSIONS - 1)
        bins = lesson.bins.gather(1, dimensions)
        logits = self._rows.logits(predicted)
        tokens = functional.cross_entropy(logits[counted], bins[counted])
        wanted = lesson.features.gather(1, dimensions[:, :, None].expand_as(predicted))
        features = functional.smooth_l1_loss(predicted[counted], wanted[counted])
        return {"total": tokens + self._config.feature_weight * features, "tokens": tokens, "features": features}

    def claims(self, network: nn.Module, book: ActionBook, rows: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(network, HeadNetwork)
        lesson = self._lesson(book, rows)
        kind = EagleHead if self._config.kind == EAGLE else ParallelHead
        prompt = network.read(lesson.embeddings, lesson.hidden)
        decided = (lesson.bins[:, :ROWS], lesson.features[:, :ROWS], torch.ones_like(lesson.lengths))
        return kind(network, self._rows).chances(prompt, lesson.lengths, *decided, fewest=1), lesson.bins

    def save(self, network: nn.Module, directory: Path) -> None:
        assert isinstance(network, HeadNetwork)
        save_head(network, directory)

    def _lesson(self, book: ActionBook, rows: Tensor) -> Lesson:
        prompts = self._teacher.prompts(book.library.frames(rows), book.library.texts(rows))
        return self._teacher.lesson(prompts)

    def _with_noise(self, lesson: Lesson) -> Lesson:
        """So that a head bears features that are not quite the target's, as its own are (EAGLE, section 4.2)."""

        def noisy(states: Tensor) -> Tensor:
            scale = self._config.noise * states.square().mean(dim=-1, keepdim=True).sqrt()
            return states + scale * (2 * torch.rand_like(states) - 1)

        return replace(lesson, hidden=noisy(lesson.hidden), features=noisy(lesson.features))

    def _predict(self, network: HeadNetwork, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Hidden states `[B, P, width]` and the dimensions `[B, P]` of the tokens they tell, some beyond the last."""
        counts = torch.randint(1, ROWS + 1, lesson.lengths.shape, device=lesson.lengths.device)
        prompt = network.read(lesson.embeddings, lesson.hidden)
        embeddings = self._rows.embed(lesson.bins)  # [B, 7, width]
        decided = Decided(embeddings[:, :ROWS], lesson.features[:, :ROWS], counts)
        behind = torch.arange(1, ROWS + 1, device=counts.device).expand(len(counts), -1)
        if network.config.kind != EAGLE:
            return network.at_once(prompt, lesson.lengths, decided), behind
        upcoming = (
            embeddings[torch.arange(len(counts), device=counts.device), (counts + step).clamp(max=DRAFTED_DIMENSIONS)]
            for step in range(ROWS)
        )
        known, drafted = network.unroll(prompt, lesson.lengths, decided, ROWS - 1, lambda hidden: next(upcoming))
        ahead = counts[:, None] + torch.arange(ROWS, device=counts.device)
        return torch.cat([known, drafted], dim=1), torch.cat([behind, ahead], dim=1)
