"""Which matrix products of few rows are made by a kernel of our own, and layers that call it.

Knows when the kernel serves. Knows nothing of its inside (`policy.acceleration.product_kernel`).

A pass over few tokens takes as long as its weights take to be read. From 2 to 16 rows PyTorch's products read them
some percent slower than the kernel, for one row and for more than 16 faster; and they do not take weights of 8 bits at
all without rounding the inputs to 8 bits, too.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional

# Rows for which the kernel serves. Measured on an H200 with the sizes of a 7B model: at 14 rows the four products of a
# layer take 110 us by the kernel and 115 by cuBLAS, at one row 145 and 114, at 40 rows 198 and 117 (docs/log.md).
# The one row was laid out otherwise then. `policy.acceleration.short_layer` serves up to as many, one included.
FEWEST, MOST = 2, 16
# Compute capability from which GPUs multiply bfloat16.
_CAPABILITY = (8, 0)


def check_kernels(device: torch.device) -> None:
    """Raise ValueError where our kernels cannot run; on a CPU, PyTorch's own take their place."""
    if device.type != "cuda":
        return
    if find_spec("triton") is None:
        raise ValueError("the kernels 'skinny' need Triton: install the package triton, or use the kernels 'torch'")
    if (found := torch.cuda.get_device_capability(device)) < _CAPABILITY:
        raise ValueError(
            f"the kernels 'skinny' need a GPU of compute capability 8.0 or later (Ampere), and "
            f"{torch.cuda.get_device_name(device)} has {'.'.join(map(str, found))}; use the kernels 'torch'"
        )


@torch.library.custom_op("specact::product", mutates_args=())
def product(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """`x @ (scale * weight).T` as `product_kernel.multiply`; opaque to the compiler."""
    from policy.acceleration.product_kernel import multiply  # needs Triton, which only a GPU's PyTorch brings

    return multiply(x.contiguous() if x.stride(-1) != 1 else x, weight, scale)


@product.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def is_short(x: Tensor) -> bool:
    """Whether the kernel serves for inputs `[R, in]`."""
    return x.is_cuda and FEWEST <= x.shape[0] <= MOST


class SkinnyLinear(nn.Module):
    """Takes the place of a bias-free linear layer and keeps its weight: few rows go through the kernel."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach())

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Inputs `[..., in]` to outputs `[..., out]`."""
        rows = x.flatten(0, -2)
        if is_short(rows):
            return product(rows, self.weight, None).unflatten(0, x.shape[:-1])
        return functional.linear(x, self.weight)
