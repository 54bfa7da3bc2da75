"""Plain greedy decoding, the reference that every faster decoder is compared with: one prefill and six single-token
steps.

The largest of *all* logits is taken, as the original does: ids outside the action range occur, and the action tokenizer
gives them the nearest bin. Where the original stops at an early end-of-sequence id (and then returns prompt ids as an
action), this decoder goes on to seven tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policy.decoding.cache import CachePool
from policy.decoding.prompt_batch import PromptBatch, Sight
from policy.decoding.stopwatch import Stopwatch
from policy.openvla.config import ACTION_DIMENSIONS
from policy.openvla.model import OpenVLA
from policy.types import DecodeTrace


@dataclass(frozen=True, slots=True)
class GreedyStep:
    """One forward pass: the ids chosen, int64 `[B]`, and the hidden state `[B, width]` and logits `[B, vocabulary]`
    they came from.
    """

    tokens: Tensor
    hidden: Tensor
    logits: Tensor


class AutoregressiveDecoder:
    """Seven target passes per action, rows of different lengths side by side."""

    name = "autoregressive"

    def __init__(self, model: OpenVLA) -> None:
        self.model = model
        self._caches = CachePool(model)

    def forget(self, session: str) -> None:
        """Nothing is kept between actions, so there is nothing to forget."""

    def look(self, sight: Sight) -> None:
        """Nobody drafts, so there is nothing to begin with."""

    def rehearse(self, prompts: PromptBatch) -> None:
        """Run every pass that an action of prompts of these shapes may need, so that none is recorded later on."""
        for _ in self.steps(prompts):
            pass

    def decode(
        self, prompts: PromptBatch, sessions: Sequence[str], stopwatch: Stopwatch
    ) -> tuple[Tensor, list[DecodeTrace]]:
        """Action token ids, int64 `[B, 7]` on the host, and one trace per row.

        Laps "prefill" and "decode" on the stopwatch.
        """
        tokens = []
        for index, step in enumerate(self.steps(prompts)):
            tokens.append(step.tokens)
            stopwatch.lap("decode" if index else "prefill")
        trace = DecodeTrace(
            target_passes=ACTION_DIMENSIONS,
            accepted_per_pass=(1,) * ACTION_DIMENSIONS,
            drafters=("",) * ACTION_DIMENSIONS,
            deviation_bins=(0,) * ACTION_DIMENSIONS,
            sources=("",) * ACTION_DIMENSIONS,
        )
        return torch.stack(tokens, dim=1).cpu(), [trace] * len(prompts.lengths)

    def steps(self, prompts: PromptBatch) -> Iterator[GreedyStep]:
        """The seven passes one by one."""
        model, lengths = self.model, prompts.lengths
        batch, longest, _ = prompts.embeddings.shape
        cache = self._caches.get(batch, longest + ACTION_DIMENSIONS - 1)
        positions = torch.arange(longest, device=model.device).expand(batch, -1)
        hidden = model.language_model(prompts.embeddings, positions, cache)  # [B, S, width]
        hidden = hidden[torch.arange(batch, device=model.device), lengths - 1]  # [B, width], each row's last true token
        for emitted in range(ACTION_DIMENSIONS):
            logits = model.logits(hidden)
            tokens = logits.argmax(dim=-1)
            yield GreedyStep(tokens, hidden, logits)
            if emitted + 1 < ACTION_DIMENSIONS:
                embeddings = model.language_model.model.embed_tokens(tokens[:, None])
                # Each row goes on at its own end and there overwrites the padding of the prefill.
                hidden = model.language_model(embeddings, (lengths + emitted)[:, None], cache)[:, 0]
