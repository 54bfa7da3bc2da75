"""The language model arranged for inference: joined projections, and layers that are functions of tensors only.

Computes what `policy.openvla.language_model` does, with the same operations in the same order on the same numbers.
Knows nothing of graphs (`policy.decoding.capture`) or of number formats (`policy.acceleration.float8`).

Queries, keys and values are one matrix, gate and up another: three matrix products fewer a layer, and each of the rest
is large enough to keep a GPU busy. A layer takes its part of the cache as tensors, so that one compiled layer serves
all of them: rotary positions and the cache write, residual and norm, SiLU and product each become one kernel then.
Instead of a compiler, kernels of our own can do what lies between the products (`policy.acceleration.kernel_layer`).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from policy.acceleration.kernel_layer import View, added, kernel_layer
from policy.acceleration.rows import Rows
from policy.decoding.cache import StaticCache
from policy.hardware import return_freed_memory
from policy.openvla.language_model import KeyValueCache, LanguageModel, Layer, RMSNorm, rotary_tables, rotate, taken

# PyTorch's memory-efficient attention wants rows of a mask to start at multiples of so many numbers, and where they do
# not, copies the mask in every layer.
_MASK_ALIGNMENT = 16


class FusedLayer(nn.Module):
    """One layer with the weights of a plain one, which are joined and not shared with it.

    own_kernels: on a GPU, what lies between products is made by kernels of our own, and in passes of few tokens, all of
    the layer; they want head sizes that are powers of two, and leave others to PyTorch. The norms' weights are
    multiplied into those of the products that follow them.
    """

    def __init__(self, layer: Layer, own_kernels: bool = False) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.head_size, self.grouped = attention.head_size, attention.grouped
        self.own_kernels = own_kernels and self.head_size.bit_count() == 1
        self.heads = attention.q_proj.out_features // self.head_size
        self.key_value_heads = attention.k_proj.out_features // self.head_size
        self.input_layernorm = layer.input_layernorm
        self.qkv = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self.o_proj: nn.Module = attention.o_proj
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.gate_up = _joined(mlp.gate_proj, mlp.up_proj)
        self.down_proj: nn.Module = mlp.down_proj
        if self.own_kernels:
            self.input_layernorm = _folded(self.input_layernorm, self.qkv)
            self.post_attention_layernorm = _folded(self.post_attention_layernorm, self.gate_up)

    def forward(
        self,
        x: Tensor,
        cosine: Tensor,
        sine: Tensor,
        keys: Tensor,
        values: Tensor,
        rows: Tensor,
        slots: Tensor,
        bias: Tensor,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Inputs `[B, S, width]` to outputs; writes to its cache.

        cosine, sine: `[B, 1, S, head size]`. keys, values: this layer's cache, `[B, H, length, head size]`. rows: int64
        `[B, 1]`, 0..B-1. slots: int64 `[B, S]`. bias: `[B, 1, S, length]`, 0 where a query may look, else -inf.
        wanted: tokens int64 `[B, n]` whose outputs are asked for, all unless given; the cache gets all either way.
        """
        qkv = self.qkv(self.input_layernorm(x))
        attended = self._attend(qkv, cosine, sine, keys, values, rows, slots, bias)
        if wanted is not None:
            x, attended = taken(x, wanted), taken(attended, wanted)
        x = x + self.o_proj(attended)
        gate, up = self.gate_up(self.post_attention_layernorm(x)).chunk(2, dim=-1)
        return x + self.down_proj(functional.silu(gate) * up)

    def _attend(
        self,
        qkv: Tensor,
        cosine: Tensor,
        sine: Tensor,
        keys: Tensor,
        values: Tensor,
        rows: Tensor,
        slots: Tensor,
        bias: Tensor,
    ) -> Tensor:
        qkv = qkv.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
        rotated = rotate(qkv[:, : self.heads + self.key_value_heads], cosine, sine)
        queries, new_keys = rotated.split([self.heads, self.key_value_heads], dim=1)  # [B, H, S, head size]
        keys[rows, :, slots] = new_keys.transpose(1, 2)
        values[rows, :, slots] = qkv[:, self.heads + self.key_value_heads :].transpose(1, 2)
        attended = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=bias, enable_gqa=self.grouped
        )
        return attended.transpose(1, 2).flatten(2)


class FusedLanguageModel(LanguageModel):
    """Takes the place of a plain language model and its weights: layer by layer, so that a 7B model needs no more
    memory than one layer besides. The plain one is of no use afterwards.

    attention: PyTorch's kernel to use, its own choice unless given; where it cannot, a RuntimeError says why.
    own_kernels: as for a layer.
    """

    def __init__(self, plain: LanguageModel, attention: SDPBackend | None = None, own_kernels: bool = False) -> None:
        nn.Module.__init__(self)
        self.config, self.model, self.lm_head = plain.config, plain.model, plain.lm_head
        self._attention = attention
        layers = self.model.layers
        for index in range(len(layers)):
            layers[index] = FusedLayer(cast(Layer, layers[index]), own_kernels)
            return_freed_memory(self.lm_head.weight.device)

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        cache: KeyValueCache | None = None,
        slots: Tensor | None = None,
        mask: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """As `LanguageModel.forward`; the cache must be a StaticCache. The last layer works out `wanted` rows only."""
        batch, length, _ = embeddings.shape
        if cache is None:
            cache = StaticCache(self.config, batch, length, embeddings.device, embeddings.dtype)
            slots = torch.arange(length, device=embeddings.device).expand(batch, -1)
        if not isinstance(cache, StaticCache):
            raise TypeError(f"joined layers write to a StaticCache, got a {type(cache).__name__}")
        slots = positions if slots is None else slots
        bias = _additive(cache.causal_mask(slots) if mask is None else mask, embeddings.dtype)
        cosine, sine = rotary_tables(positions, self.config.head_size, self.config.rotary_base, embeddings.dtype)
        cosine, sine, slots = (table.contiguous() for table in (cosine, sine, slots))
        rows = torch.arange(batch, device=embeddings.device)[:, None]
        x, pending = embeddings, cast(Rows | None, None)
        with nullcontext() if self._attention is None else sdpa_kernel(self._attention):
            for index, layer in enumerate(self.model.layers):
                last = wanted if index == len(self.model.layers) - 1 else None
                keys, values = cache.keys[index], cache.values[index]
                if x.is_cuda and isinstance(layer, FusedLayer) and layer.own_kernels:
                    view = View(cosine, sine, keys, values, slots, bias)
                    x, pending = kernel_layer(layer, x, pending, view, last)
                else:
                    x = layer(x, cosine, sine, keys, values, rows, slots, bias, last)
        return self.model.norm(added(x, pending))


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as what is added to attention scores, made once for all layers, in rows that start aligned."""
    length = mask.shape[-1]
    aligned = -(-length // _MASK_ALIGNMENT) * _MASK_ALIGNMENT
    bias = mask.new_full((*mask.shape[:-1], aligned), float("-inf"), dtype=dtype)
    return bias[..., :length].masked_fill_(mask, 0.0)


def _folded(norm: RMSNorm, product: nn.Linear) -> RMSNorm:
    """The norm without its weight, which goes into the product's; rounding is then the weight's instead of the input's.

    In both products of the layer, so that passes of any length read the same weights.
    """
    with torch.no_grad():  # else the graph of gradients keeps the weight as it was, and so all of them twice
        product.weight.mul_(norm.weight)
    plain = RMSNorm(norm.weight.numel(), norm.epsilon)
    return plain.to(norm.weight.device, norm.weight.dtype)


def _joined(*layers: nn.Linear) -> nn.Linear:
    """One bias-free layer with the outputs of all."""
    joined = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), bias=False, device="meta")
    joined.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]), requires_grad=False)
    return joined
