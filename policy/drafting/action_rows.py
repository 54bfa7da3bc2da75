"""The rows of a language model that belong to action tokens, in the order of bins: all that a head needs of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from policy.openvla.config import ACTION_BINS
from policy.openvla.model import OpenVLA


@dataclass(frozen=True, slots=True, eq=False)
class ActionRows:
    """embedding, head: `[256, width]` each, by bin. Multiplying with 256 rows reads 1 % of what 32,064 rows take."""

    embedding: Tensor
    head: Tensor

    @classmethod
    def of(cls, model: OpenVLA) -> ActionRows:
        end = model.config.action_vocabulary
        language = model.language_model
        # Ids count down where bins count up.
        rows = (
            weight[end - ACTION_BINS : end].flip(0)
            for weight in (language.model.embed_tokens.weight, language.lm_head.weight)
        )
        return cls(*(row.detach() for row in rows))

    def embed(self, bins: Tensor) -> Tensor:
        """`[..., width]` of bins int64 `[...]`."""
        return functional.embedding(bins, self.embedding)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 `[..., 256]` of hidden states `[..., width]` behind the final norm."""
        return functional.linear(hidden, self.head).float()

    def chances(self, hidden: Tensor) -> Tensor:
        """Float32 `[..., 256]`, adding up to 1."""
        return torch.softmax(self.logits(hidden), dim=-1)
