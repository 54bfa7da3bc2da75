"""A whole layer of the language model in five launches, for passes of few tokens.

Knows the order of a Llama layer's steps. Knows nothing of the kernels' inside, which need Triton, so they are imported
where they run.

Such a pass takes as long as the layer's weights take to be read, if nothing interrupts the reading. So norms, SiLU and
residuals are done by the products next to them, and on Hopper and later every launch overlaps with the end of the one
before it and asks for the first columns of its weight, which no earlier launch writes to.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Columns of each weight that are asked for ahead of time: of a 7B layer's about 13 MB, all 34 MB of the output
# projection, which has the time that attention takes, 11 and 8 MB. An H200's second-level cache holds 50 MB.
_AHEAD = {"qkv": 512, "output": 4096, "gate_up": 256, "down": 1024}


@torch.library.custom_op("specact::short_layer", mutates_args=("keys", "values"))
def short_layer(
    x: Tensor,
    weights: list[Tensor],
    scales: list[Tensor],
    epsilon: float,
    cosine: Tensor,
    sine: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    bias: Tensor,
) -> Tensor:
    """Outputs `[B, S, width]` of inputs `[B, S, width]`; writes to the layer's cache.

    weights: of queries, keys and values; output; gate and up; down, `[out, in]` each, those of the norms multiplied
    into the first and the third. scales: a factor for each output of each, float32 `[out]`, or an empty list.
    The other arguments are those of `attention_kernel.attend_with_new`.
    """
    from policy.acceleration.attention_kernel import attend_with_new
    from policy.acceleration.product_kernel import multiply

    factors: list[Tensor | None] = [*scales] or [None] * len(weights)
    of_qkv, of_output, of_gate_up, of_down = zip(weights, factors, strict=True)
    batch, tokens, _ = x.shape
    rows = x.contiguous().flatten(0, 1)
    qkv = multiply(rows, *of_qkv, epsilon=epsilon, ahead=_AHEAD["qkv"]).view(batch, tokens, -1)
    attended = attend_with_new(
        qkv, cosine.contiguous(), sine.contiguous(), keys, values, slots.contiguous(), bias, ahead=True
    )
    rows = multiply(attended.flatten(0, 1), *of_output, residual=rows, ahead=_AHEAD["output"])
    gated = multiply(rows, *of_gate_up, epsilon=epsilon, gated=True, ahead=_AHEAD["gate_up"])
    return multiply(gated, *of_down, residual=rows, ahead=_AHEAD["down"]).view_as(x)


@short_layer.register_fake
def _(
    x: Tensor,
    weights: list[Tensor],
    scales: list[Tensor],
    epsilon: float,
    cosine: Tensor,
    sine: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    bias: Tensor,
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
