"""A head that drafts all that the prompt's pass left open at once, and so without knowing what it drafts before."""

from __future__ import annotations

import torch
from torch import Tensor

from policy.drafting.head_network import PARALLEL, ROWS, Decided
from policy.drafting.reading_head import ReadingHead


class ParallelHead(ReadingHead):
    """One pass of one layer, however many tokens there are to draft."""

    name = PARALLEL

    def chances(
        self, prompt: Tensor, lengths: Tensor, bins: Tensor, features: Tensor, counts: Tensor, fewest: int
    ) -> Tensor:
        hidden = self.network.at_once(prompt, lengths, Decided(self.rows.embed(bins), features, counts))
        chances = self.rows.chances(hidden)  # [B, 5, 256], of dimensions 1..5
        drafted = torch.arange(1, ROWS + 1, device=counts.device) >= counts[:, None]
        nothing = chances.new_zeros(len(chances), 1, chances.shape[2])
        return torch.cat([nothing, torch.where(drafted[:, :, None], chances, 0.0)], dim=1)
