"""Weights as 8-bit integers with a scale for each output; inputs stay as they are.

Knows the rounding. Knows nothing of which layers use it, nor of the kernel that multiplies
(`policy.acceleration.product_kernel`).

A row of a weight is divided by its largest magnitude over 127 before it is rounded (Dettmers et al. 2022, "LLM.int8()",
section 2). Rows of weights have few outliers, so whole numbers in equal steps are about three times nearer to them than
8-bit floating point with its 3 bits of mantissa; inputs, which do have outliers, are not rounded at all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST = 127
# Smallest scale, for rows of zeros.
_TINY = 1e-12


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers `[R, C]` as int8 and the factor of each row, float32 `[R]`."""
    exact = x.float()
    scale = (exact.abs().amax(dim=1) / LARGEST).clamp_min(_TINY)
    return (exact / scale[:, None]).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """Takes the place of a bias-free linear layer; its weight is rounded once."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantise_rows(layer.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    weight: Tensor
    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Inputs `[..., in]` to outputs `[..., out]`."""
        if x.is_cuda:
            # Many rows are bound by computing, at which PyTorch's products are better, the widened weight included;
            # few are taken by `kernel_layer`.
            return (functional.linear(x, self.weight.to(x.dtype)).float() * self.scale).to(x.dtype)
        return (functional.linear(x.float(), self.weight.float()) * self.scale).to(x.dtype)
