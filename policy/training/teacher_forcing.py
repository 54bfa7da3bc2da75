"""The network, the prompts and the scene targets as training sees them; knows nothing of steps, files or schedules."""

from __future__ import annotations

import torch
from torch import nn

from policy.openvla.model import OpenVLA
from policy.openvla.prompt import Prompter
from policy.training.frames import PRIVILEGED_SIZE

ACTION_DIMENSIONS = 7


class TrainedPolicy(nn.Module):
    """The network plus an auxiliary head that reads the scene off the last prompt position (training only)."""

    def __init__(self, network: OpenVLA) -> None:
        super().__init__()
        self.network = network
        for tower in (network.vision_backbone.featurizer, network.vision_backbone.fused_featurizer):
            tower.patch_embed.as_product = True
        self.auxiliary = nn.Linear(network.config.language.width, PRIVILEGED_SIZE)

    def compile_blocks(self) -> None:
        """Compile every block and layer in place. One compilation serves all of a kind, so there are three; compiling
        the network as a whole takes twice as long or more and makes nothing faster.
        """
        towers = self.network.vision_backbone
        for kind in (
            towers.featurizer.blocks,
            towers.fused_featurizer.blocks,
            self.network.language_model.model.layers,
        ):
            for block in kind:
                block.compile(dynamic=False)

    def forward(
        self, pixels: torch.Tensor, token_ids: torch.Tensor, prompt_lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """pixels `[B, 6, 224, 224]`, token_ids `[B, T]` (prompt, six action tokens, padding), prompt_lengths `[B]`.

        Returns logits `[B, 7, V]` and the scene reading `[B, 10]`. Padding comes last, out of causal attention's sight.
        """
        features = self.network.image_features(pixels)
        embeddings = self.network.embed(token_ids, features)
        # One row for all: tables of a row each would be as large as the queries and keys that they turn.
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        hidden = self.network.language_model(embeddings, positions)
        # the hidden state at the last prompt position predicts the first action token
        last = prompt_lengths + features.shape[1] - 1
        where = last[:, None] + torch.arange(ACTION_DIMENSIONS, device=last.device)
        picked = hidden.gather(1, where[..., None].expand(-1, -1, hidden.shape[-1]))  # [B, 7, D]
        return self.network.logits(picked), self.auxiliary(picked[:, 0])


class PromptTable:
    """Token ids of every instruction, padded to one length so that the compiled step keeps its shapes."""

    def __init__(self, prompter: Prompter, instructions: list[str], device: torch.device) -> None:
        ids = [prompter.token_ids(text) for text in instructions]
        self.index = {text: i for i, text in enumerate(instructions)}
        self.width = max(map(len, ids)) + ACTION_DIMENSIONS - 1
        self.lengths = torch.tensor([len(row) for row in ids], device=device)
        self.ids = torch.tensor([row + [0] * (self.width - len(row)) for row in ids], device=device)
        self._found: dict[tuple[str, ...], torch.Tensor] = {}

    def of(self, instructions: list[str]) -> torch.Tensor:
        """Their rows in this table, int64. Kept, as the host waits whenever numbers are brought to a device."""
        key = tuple(instructions)
        if key not in self._found:
            self._found[key] = torch.tensor([self.index[text] for text in key], device=self.ids.device)
        return self._found[key]

    def rows(self, task: torch.Tensor, action_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt ids with the six teacher-forced action ids behind them, `[B, T]`, and prompt lengths `[B]`."""
        ids, lengths = self.ids[task].clone(), self.lengths[task]
        where = lengths[:, None] + torch.arange(action_ids.shape[1], device=lengths.device)
        return ids.scatter(1, where, action_ids), lengths


class Standardizer:
    """Zero mean, unit spread for the auxiliary targets; frozen at the start of a run."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        self.mean, self.std = mean, std

    @classmethod
    def fit(cls, values: torch.Tensor) -> Standardizer:
        return cls(values.mean(0), values.std(0).clamp_min(1e-6))

    def to(self, device: torch.device | str) -> Standardizer:
        """The same on another device."""
        return Standardizer(self.mean.to(device), self.std.to(device))

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        return (values - self.mean) / self.std
