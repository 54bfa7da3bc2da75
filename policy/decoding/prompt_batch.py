"""What the language model is asked: spliced embeddings of one or several prompts of different lengths.

Knows padding. Knows nothing of how tokens are then chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from policy.decoding.transfer import to_device
from policy.openvla.config import PATCHES
from policy.openvla.model import OpenVLA

# Prompts are padded to a multiple of so many ids, so that instructions of all lengths make few shapes; where several
# are read at once, and batches of many sizes make shapes enough, to one of more.
PROMPT_LENGTHS, PROMPT_LENGTHS_OF_SEVERAL = 8, 32


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """What drafters need that look for themselves: pixel values `[B, 6, 224, 224]` on the model's device, B texts."""

    pixels: Tensor
    instructions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Embeddings `[B, S, width]`, padded on the right, and each row's true length, int64 `[B]`, patches included.

    keys: a number for each row that is equal for equal prompts. sight: only where a drafter looks for itself.
    """

    embeddings: Tensor
    lengths: Tensor
    keys: tuple[int, ...]
    sight: Sight | None = None

    @classmethod
    def embed(
        cls, model: OpenVLA, prompts: Sequence[Sequence[int]], image_features: Tensor, sight: Sight | None = None
    ) -> PromptBatch:
        """Splice projected patches `[B, 256, width]` into B prompts, each the ids from BOS to the piece before the
        actions.

        Raises ValueError for an empty prompt, for a number of prompts other than B and for ids the model does not have.
        """
        if len(prompts) != len(image_features) or not all(prompts):
            raise ValueError(
                f"need one prompt of at least BOS per image, got {len(image_features)} images and prompts "
                f"of lengths {[len(prompt) for prompt in prompts]}"
            )
        token_ids, lengths = cls.ids(model, prompts)
        keys = tuple(hash(tuple(prompt)) for prompt in prompts)
        return cls(model.embed(token_ids, image_features), lengths, keys, sight)

    @staticmethod
    def ids(model: OpenVLA, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids int64 `[B, T]`, padded on the right, and lengths int64 `[B]` with the patches, on the model's device."""
        highest, vocabulary = max(map(max, prompts)), model.config.language.vocabulary
        if highest >= vocabulary:
            raise ValueError(
                f"token id {highest} is not in the model's vocabulary of {vocabulary}; the tokenizer is another model's"
            )
        multiple = PROMPT_LENGTHS if len(prompts) == 1 else PROMPT_LENGTHS_OF_SEVERAL
        longest = -(-max(map(len, prompts)) // multiple) * multiple
        padding = model.config.pad_token_id
        # The length comes last in each row, so that one copy brings both.
        rows = tuple((*prompt, *[padding] * (longest - len(prompt)), len(prompt) + PATCHES) for prompt in prompts)
        moved = _brought(rows, model.device)  # [B, longest + 1]
        return moved[:, :-1], moved[:, -1]


@lru_cache(maxsize=256)
def _brought(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Int64 `[rows, columns]` on a device; kept, since a robot is told the same step after step."""
    with torch.inference_mode(False):  # training may read it, too
        return to_device(np.array(rows, np.int64), device)
