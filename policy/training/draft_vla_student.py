"""Teaches a draft VLA: a small OpenVLA learns to do what the target does on the same frame.

Knows the loss. The target's own choice is the label, so what the model claims for a bin is how probable the target is
to choose it, which is what a tree needs to know.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from policy.decoding.prompt_batch import PromptBatch
from policy.decoding.tree import DRAFTED_DIMENSIONS
from policy.drafting.draft_vla import DraftVLA
from policy.openvla.action_tokens import ActionStatistics
from policy.openvla.checkpoint import save_checkpoint
from policy.openvla.config import ACTION_BINS, OpenVLAConfig
from policy.openvla.model import OpenVLA
from policy.training.augmentation import jitter_colors
from policy.training.drafter_config import DrafterTrainingConfig
from policy.training.teacher import ActionBook, Teacher


class DraftVLAStudent:
    """Satisfies `policy.training.drafter_training.Student`.

    directory: the target's checkpoint, whose tokenizer it takes over. dataset, statistics: the target's bins.
    """

    start = 0

    def __init__(
        self,
        config: DrafterTrainingConfig,
        teacher: Teacher,
        directory: Path,
        dataset: str,
        statistics: ActionStatistics,
    ) -> None:
        self._config = config
        self._teacher = teacher
        self._directory, self._dataset, self._statistics = directory, dataset, statistics
        network = OpenVLA.from_config(_sizes(config, teacher.model.config))
        self.network: nn.Module = network.to(teacher.device)
        self._action_vocabulary = network.config.action_vocabulary

    def losses(self, network: nn.Module, book: ActionBook, rows: Tensor) -> dict[str, Tensor]:
        assert isinstance(network, OpenVLA)
        bins = book.look_up(rows)[:, :DRAFTED_DIMENSIONS]
        frames = book.library.frames(rows).to(self._teacher.device)
        pictures = jitter_colors(frames.permute(0, 3, 1, 2).float() / 255, self._config.augmentation)
        token_ids, lengths = self._token_ids(book.library.texts(rows), bins)
        # The hidden state at a prompt's last position tells the first action token.
        where = lengths[:, None] - 1 + torch.arange(DRAFTED_DIMENSIONS, device=lengths.device)
        with self._teacher.mixed_precision():
            hidden = network(self._teacher.normalize(pictures), token_ids)
            logits = network.logits(hidden.gather(1, where[:, :, None].expand(-1, -1, hidden.shape[2])))
        # Over the whole vocabulary, so that words learn to lose; ids count down where bins count up.
        end = self._action_vocabulary
        by_bin = functional.log_softmax(logits, dim=-1)[:, :, end - ACTION_BINS : end].flip(-1)
        return {"total": -(self._wanted(bins) * by_bin).sum(dim=-1).mean()}

    def claims(self, network: nn.Module, book: ActionBook, rows: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(network, OpenVLA)
        pixels = self._teacher.pixels(book.library.frames(rows))
        prompts = PromptBatch.ids(network, self._teacher.prompt_ids(book.library.texts(rows)))
        return DraftVLA(network, self._teacher.prompter).chances(pixels, *prompts), book.look_up(rows)

    def save(self, network: nn.Module, directory: Path) -> None:
        assert isinstance(network, OpenVLA)
        statistics = {self._dataset: {"action": self._statistics.to_json()}}
        save_checkpoint(network, directory, tokenizer_directory=self._directory, statistics=statistics)

    def _token_ids(self, instructions: tuple[str, ...], bins: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts with all action tokens but the last drafted one behind them, `[B, T]`, and prompts' lengths with the
        patches.
        """
        actions = (self._action_vocabulary - 1 - bins[:, :-1]).tolist()
        prompts = self._teacher.prompt_ids(instructions)
        rows = [prompt + action for prompt, action in zip(prompts, actions, strict=True)]
        token_ids, lengths = PromptBatch.ids(self._teacher.model, rows)
        return token_ids, lengths - len(actions[0])

    def _wanted(self, bins: Tensor) -> Tensor:
        """Float32 `[B, 6, 256]`, adding up to 1."""
        if not self._config.smoothing_bins:
            return functional.one_hot(bins, ACTION_BINS).float()
        distance = torch.arange(ACTION_BINS, device=bins.device) - bins[:, :, None]
        return torch.softmax(-0.5 * (distance / self._config.smoothing_bins).square(), dim=-1)


def _sizes(config: DrafterTrainingConfig, target: OpenVLAConfig) -> OpenVLAConfig:
    """Small, with the target's vocabulary, so that its tokenizer serves and ids are the same."""
    sizes = config.network.openvla_config(target.language.vocabulary)
    return replace(
        sizes,
        pad_to_multiple_of=target.pad_to_multiple_of,
        pad_token_id=target.pad_token_id,
        maximum_tokens=target.maximum_tokens,
    )
