"""The Llama language model, with parameters named as published.

Knows attention over a sequence or over a key-value cache. Knows nothing of images, of prompts or of who owns the cache:
anything with the two methods of `KeyValueCache` serves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from policy.openvla.config import LanguageConfig

# Takes a layer's new keys and values, gives all that its queries may attend to.
Store = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class KeyValueCache(Protocol):
    """What attention needs of a cache. Slots are places in the cache; a slot may hold any rotary position."""

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values `[B, H, S, D]` at slots `[B, S]`; return the layer's whole cache, `[B, H, length, D]`
        each.
        """

    def causal_mask(self, slots: Tensor) -> Tensor:
        """Bool `[B, 1, S, length]`: a query sees its own slot and all before it."""


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019): float32 inside, cast back, *then* times the weight, as Llama
    does.
    """

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float()
        normed = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * normed.to(x.dtype)


def rotary_tables(positions: Tensor, head_size: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine `[B, 1, S, head_size]` of the rotary angles (Su et al. 2021, equation 34; half-split layout).

    Angles are float32 whatever the model's dtype: rounding the frequencies to bfloat16 moves logits by 0.6.
    """
    exponents = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32) / head_size
    angles = positions[:, None, :, None].float() * (1.0 / base**exponents)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def taken(x: Tensor, rows: Tensor) -> Tensor:
    """Rows int64 `[B, n]` of `[B, S, width]`."""
    return x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[2]))


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    # The cast only acts under autocast, where the tables are float32 and the projections are not.
    return x * cosine.to(x.dtype) + torch.cat([-second, first], dim=-1) * sine.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.grouped = config.heads != config.key_value_heads
        self.q_proj = nn.Linear(config.width, config.heads * config.head_size, bias=False)
        self.k_proj = nn.Linear(config.width, config.key_value_heads * config.head_size, bias=False)
        self.v_proj = nn.Linear(config.width, config.key_value_heads * config.head_size, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_size, config.width, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], store: Store | None, mask: Tensor | None) -> Tensor:
        queries = rotate(self._split_heads(self.q_proj(x)), *rotary)  # [B, H, S, D]
        keys, values = self.keys_and_values(x, rotary)
        if store is not None:
            keys, values = store(keys, values)
        attended = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=self.grouped
        )
        return self.o_proj(attended.transpose(1, 2).flatten(2))

    def keys_and_values(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """`[B, H, S, D]` each, of inputs `[B, S, width]`: all that other queries need of these positions."""
        return rotate(self._split_heads(self.k_proj(x)), *rotary), self._split_heads(self.v_proj(x))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.down_proj = nn.Linear(config.mlp, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_epsilon)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], store: Store | None, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, store, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Embedding, layers and final norm: what the published files keep under `language_model.model`."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_epsilon)


class LanguageModel(nn.Module):
    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        cache: KeyValueCache | None = None,
        slots: Tensor | None = None,
        mask: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, `[B, S, width]`, or those of the `wanted` rows, int64 `[B, n]`.

        embeddings: `[B, S, width]`. positions: int64 `[B, S]`, rotary positions.
        Without a cache, attention is causal in the order given, so padding belongs on the right.
        With a cache, new keys and values go to `slots` (int64 `[B, S]`; the positions unless given) and every query
        sees the slots up to its own. Nodes of a token tree share positions but not slots, and bring their own mask.
        mask: bool, broadcastable to `[B, 1, S, keys]`, True where a query may look; replaces the causal one.
        """
        rotary = rotary_tables(positions, self.config.head_size, self.config.rotary_base, embeddings.dtype)
        slots = positions if slots is None else slots
        if cache is not None and mask is None:
            mask = cache.causal_mask(slots)
        x = embeddings
        for index, layer in enumerate(self.model.layers):
            store = None if cache is None else partial(cache.write, index, slots)
            x = layer(x, rotary, store, mask)
        return self.model.norm(x if wanted is None else taken(x, wanted))
