"""Attention of short passes as one operation that the compiler takes as it is.

Knows the operation's signature. Knows nothing of the kernel's inside (`policy.acceleration.attention_kernel`).
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("specact::attend", mutates_args=("keys", "values"))
def attend(
    qkv: Tensor, cosine: Tensor, sine: Tensor, keys: Tensor, values: Tensor, slots: Tensor, bias: Tensor
) -> Tensor:
    """`attention_kernel.attend`: attended values, and new entries in the cache."""
    from policy.acceleration import attention_kernel  # needs Triton, which only a GPU's PyTorch brings

    return attention_kernel.attend(
        qkv.contiguous(), cosine.contiguous(), sine.contiguous(), keys, values, slots.contiguous(), bias
    )


@attend.register_fake
def _(qkv: Tensor, cosine: Tensor, sine: Tensor, keys: Tensor, values: Tensor, slots: Tensor, bias: Tensor) -> Tensor:
    batch, tokens, width = qkv.shape
    return qkv.new_empty(batch, tokens, width - 2 * keys.shape[1] * keys.shape[3])
