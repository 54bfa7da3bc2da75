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

from policy.decoding.cache import CachePool, StaticCache
from policy.decoding.capture import Record, captured
from policy.decoding.prompt_batch import PromptBatch, Sight
from policy.decoding.stopwatch import Stopwatch
from policy.decoding.transfer import mark
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
    """Seven target passes per action, rows of different lengths side by side.

    record: replays the prompt's pass and the six others where given, each of the two as a whole.
    """

    name = "autoregressive"

    def __init__(self, model: OpenVLA, record: Record | None = None) -> None:
        self.model = model
        self._caches = CachePool(model)
        self._first_token = captured(self._choose_first, record)
        self._all_tokens = captured(self._choose_others, record)

    def forget(self, session: str) -> None:
        """Nothing is kept between actions, so there is nothing to forget."""

    def look(self, sight: Sight) -> None:
        """Nobody drafts, so there is nothing to begin with."""

    def study(self) -> None:
        """Nothing is learned."""

    def rehearse(self, prompts: PromptBatch) -> None:
        """Run every pass that an action of prompts of these shapes may need, so that none is recorded later on."""
        self.decode(prompts, (), Stopwatch(self.model.device))

    def decode(
        self, prompts: PromptBatch, sessions: Sequence[str], stopwatch: Stopwatch
    ) -> tuple[Tensor, list[DecodeTrace]]:
        """Action token ids, int64 `[sessions, 7]` on the host, and a trace for each; rows beyond them are nobody's.

        Laps "prefill" and "decode" on the stopwatch.
        """
        cache = self._cache(prompts)
        first = self._first_token((prompts.embeddings, prompts.lengths), cache)
        stopwatch.lap("prefill")
        tokens = self._all_tokens((first, prompts.lengths), cache)
        stopwatch.lap("decode")
        trace = DecodeTrace(
            target_passes=ACTION_DIMENSIONS,
            accepted_per_pass=(1,) * ACTION_DIMENSIONS,
            drafters=("",) * ACTION_DIMENSIONS,
            deviation_bins=(0,) * ACTION_DIMENSIONS,
            sources=("",) * ACTION_DIMENSIONS,
        )
        mark(tokens.device, patient=len(tokens) > 1)()
        return tokens[: len(sessions)].cpu(), [trace] * len(sessions)

    def steps(self, prompts: PromptBatch) -> Iterator[GreedyStep]:
        """The seven passes one by one."""
        cache = self._cache(prompts)
        step = self._read_prompt(prompts.embeddings, prompts.lengths, cache)
        yield step
        for emitted in range(1, ACTION_DIMENSIONS):
            step = self._read_token(step.tokens, prompts.lengths + (emitted - 1), cache)
            yield step

    def _cache(self, prompts: PromptBatch) -> StaticCache:
        batch, longest, _ = prompts.embeddings.shape
        return self._caches.get(batch, longest + ACTION_DIMENSIONS - 1)

    def _choose_first(self, embeddings: Tensor, lengths: Tensor, cache: StaticCache) -> Tensor:
        """Int64 `[B]`."""
        return self._read_prompt(embeddings, lengths, cache).tokens

    def _choose_others(self, first: Tensor, lengths: Tensor, cache: StaticCache) -> Tensor:
        """The first token and the six after it, int64 `[B, 7]`."""
        tokens = [first]
        for emitted in range(1, ACTION_DIMENSIONS):
            tokens.append(self._read_token(tokens[-1], lengths + (emitted - 1), cache).tokens)
        return torch.stack(tokens, dim=1)

    def _read_prompt(self, embeddings: Tensor, lengths: Tensor, cache: StaticCache) -> GreedyStep:
        batch, longest, _ = embeddings.shape
        positions = torch.arange(longest, device=embeddings.device).expand(batch, -1)
        last = (lengths - 1)[:, None]  # each row's last true token
        return self._choose(self.model.language_model(embeddings, positions, cache, wanted=last)[:, 0])

    def _read_token(self, tokens: Tensor, positions: Tensor, cache: StaticCache) -> GreedyStep:
        """Tokens and positions int64 `[B]`; each row goes on at its own end and there overwrites the padding."""
        embeddings = self.model.language_model.model.embed_tokens(tokens[:, None])
        return self._choose(self.model.language_model(embeddings, positions[:, None], cache)[:, 0])

    def _choose(self, hidden: Tensor) -> GreedyStep:
        logits = self.model.logits(hidden)
        return GreedyStep(logits.argmax(dim=-1), hidden, logits)
