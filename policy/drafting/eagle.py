"""The EAGLE head of Spec-VLA as a drafter: what the prompt's pass left open, token after token.

Differs from what was published in that rotary positions count the image, the head attends to earlier action tokens as
in training, chances are over the 256 action bins, and it goes on to the last token that is worth a draft, so that one
further pass of the target can finish the action. Knows nothing of trees: it follows its own best bin and tells how
probable all others are; branches beside it share what it says of later tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from policy.decoding.tree import DRAFTED_DIMENSIONS
from policy.drafting.head_network import EAGLE, ROWS, Decided
from policy.drafting.reading_head import ReadingHead
from policy.openvla.config import ACTION_BINS


class EagleHead(ReadingHead):
    """Costs as many passes of one layer as there are tokens to draft."""

    name = EAGLE

    def chances(
        self, prompt: Tensor, lengths: Tensor, bins: Tensor, features: Tensor, counts: Tensor, fewest: int
    ) -> Tensor:
        def choose(hidden: Tensor) -> Tensor:
            return self.rows.embed(self.rows.logits(hidden).argmax(dim=-1))

        decided, steps = Decided(self.rows.embed(bins), features, counts), ROWS - fewest
        _, drafted = self.network.unroll(prompt, lengths, decided, steps, choose)
        chances = self.rows.chances(drafted)  # [B, 1 + steps, 256]
        # Rows with more decided tokens than the fewest have drafts beyond the last dimension; these are cut off.
        table = chances.new_zeros(len(chances), DRAFTED_DIMENSIONS + ROWS, ACTION_BINS)
        dimensions = counts[:, None] + torch.arange(1 + steps, device=counts.device)
        table = table.scatter(1, dimensions[:, :, None].expand_as(chances), chances)
        return table[:, :DRAFTED_DIMENSIONS]
