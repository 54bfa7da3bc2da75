"""The baseline everybody has: transformers' own Llama and its `generate`, eager, behind our vision towers.

Knows how our weights fit transformers' model; they are shared, so tokens can be compared and no memory is needed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from policy.decoding.prompt_batch import PromptBatch, Sight
from policy.decoding.stopwatch import Stopwatch
from policy.openvla.config import ACTION_DIMENSIONS
from policy.openvla.model import OpenVLA
from policy.types import DecodeTrace


class TransformersDecoder:
    """An action decoder for one session at a time. The model must be as loaded, its layers not joined."""

    name = "transformers eager"

    def __init__(self, model: OpenVLA) -> None:
        self.model = model
        llama: Any = _llama(model)  # the annotation of `generate` does not bind to its class
        self._generate: Callable[..., Tensor] = llama.generate
        self._generation = GenerationConfig(
            do_sample=False,
            min_new_tokens=ACTION_DIMENSIONS,
            max_new_tokens=ACTION_DIMENSIONS,
            pad_token_id=model.config.pad_token_id,
        )

    def decode(
        self, prompts: PromptBatch, sessions: Sequence[str], stopwatch: Stopwatch
    ) -> tuple[Tensor, list[DecodeTrace]]:
        """Action token ids, int64 `[1, 7]` on the host, and the trace; all of it is lapped as "decode".

        Raises ValueError for more sessions than one.
        """
        if len(sessions) != 1:
            raise ValueError(f"the transformers baseline decodes one session at a time, got {len(sessions)}")
        embeddings = prompts.embeddings[:, : int(prompts.lengths[0])]
        present = torch.ones(embeddings.shape[:2], dtype=torch.int64, device=embeddings.device)
        ids: Tensor = self._generate(
            inputs_embeds=embeddings, attention_mask=present, generation_config=self._generation
        )
        ids = ids.cpu()
        stopwatch.lap("decode")
        passes = ACTION_DIMENSIONS
        trace = DecodeTrace(passes, (1,) * passes, ("",) * passes, (0,) * passes, sources=("",) * passes)
        return ids, [trace]

    def forget(self, session: str) -> None:
        """Nothing is kept between actions, so there is nothing to forget."""

    def rehearse(self, prompts: PromptBatch) -> None:
        """Nothing is ever recorded."""

    def look(self, sight: Sight) -> None:
        """Nobody drafts, so there is nothing to begin with."""

    def study(self) -> None:
        """Nothing is learned."""


def _llama(model: OpenVLA) -> LlamaForCausalLM:
    text = model.config.language
    sizes = text.to_json() | {"pad_token_id": model.config.pad_token_id}
    base = sizes.pop("rope_theta")
    config = LlamaConfig(**sizes, rope_parameters={"rope_type": "default", "rope_theta": base})
    with torch.device("meta"):
        llama = LlamaForCausalLM(config)
    llama.load_state_dict(model.language_model.state_dict(), assign=True)
    # The only thing that no file holds, and so still without numbers.
    llama.model.rotary_emb = LlamaRotaryEmbedding(config).to(model.device)
    return llama.eval()
