"""Attention by kernels of our own, as operations that the compiler takes as they are.

Knows the operations' signatures. Knows nothing of the kernels' inside (`policy.acceleration.attention_kernel`), which
need Triton, so they are imported where they run.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Up to so many queries a layer, one program has all of a head's, and can turn and store their keys as well.
SHORT = 48


@torch.library.custom_op("specact::attend", mutates_args=())
def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """`attention_kernel.attend`: attended values `[B, S, heads * D]`."""
    from policy.acceleration import attention_kernel

    return attention_kernel.attend(queries, keys, values, bias)


@attend.register_fake
def _(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    batch, heads, tokens, size = queries.shape
    return queries.new_empty(batch, tokens, heads * size)


@torch.library.custom_op("specact::attend_with_new", mutates_args=("keys", "values"))
def attend_with_new(
    qkv: Tensor, cosine: Tensor, sine: Tensor, keys: Tensor, values: Tensor, slots: Tensor, bias: Tensor
) -> Tensor:
    """`attention_kernel.attend_with_new`: attended values `[B, S, heads * D]`, and new entries in the cache."""
    from policy.acceleration import attention_kernel

    return attention_kernel.attend_with_new(
        qkv.contiguous(), cosine.contiguous(), sine.contiguous(), keys, values, slots.contiguous(), bias
    )


@attend_with_new.register_fake
def _(qkv: Tensor, cosine: Tensor, sine: Tensor, keys: Tensor, values: Tensor, slots: Tensor, bias: Tensor) -> Tensor:
    batch, tokens, width = qkv.shape
    return qkv.new_empty(batch, tokens, width - 2 * keys.shape[1] * keys.shape[3])
