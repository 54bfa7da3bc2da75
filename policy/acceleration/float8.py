"""Matrix products in 8-bit floating point: weights with a scale for each output, inputs with one for each token.

Knows the number format and the arithmetic. Knows nothing of which layers use it.

Numbers are e4m3 (Micikevicius et al. 2022, "FP8 Formats for Deep Learning": 4 exponent bits, 3 mantissa bits, largest
448); a row is divided by its largest magnitude over 448 before it is rounded. Products are summed in float32, rounded
to the model's dtype and multiplied by both scales. GPUs of compute capability 8.9 and later make the products in
hardware; elsewhere the same rounded numbers are multiplied in float32, which differs by the order of summation only.
Scales are applied outside of the product, where the compiler merges them with what follows: of the libraries' products,
those that take a scale for each row are slower by a quarter to two thirds than those that take one for all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from policy.acceleration.rows import LARGEST, TINY, Rows

CAPABILITY = (8, 9)
# Hardware takes matrices whose sides are multiples of so many numbers.
_SIDES = 16


def check_hardware(device: torch.device) -> None:
    """Raise ValueError where `device` is a GPU without 8-bit matrix products; a CPU simulates them."""
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < CAPABILITY:
        raise ValueError(
            f"8-bit floating point needs a GPU of compute capability {_version(CAPABILITY)} or later (Ada, Hopper), "
            f"and {torch.cuda.get_device_name(device)} has {_version(found)}; use the precision 'full'"
        )


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers `[R, C]` as 8-bit ones and the factor of each row, float32 `[R, 1]`."""
    exact = x.float()
    scale = (exact.abs().amax(dim=1, keepdim=True) / LARGEST).clamp_min(TINY)
    return (exact / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


class Float8Linear(nn.Module):
    """Takes the place of a bias-free linear layer; its weight is rounded once. Results have the layer's dtype, bfloat16
    on a GPU, as hardware has no other.

    Raises ValueError for sides that hardware does not take.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        rows, columns = layer.weight.shape
        if rows % _SIDES or columns % _SIDES:
            raise ValueError(f"8-bit products need sides that are multiples of {_SIDES}, got a weight {rows}x{columns}")
        if layer.weight.is_cuda and layer.weight.dtype != torch.bfloat16:
            raise ValueError(f"8-bit products on a GPU give bfloat16, and this model is {layer.weight.dtype}")
        weight, scale = quantise_rows(layer.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.flatten())
        self.register_buffer("one", torch.ones((), device=weight.device))

    weight: Tensor
    scale: Tensor
    one: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Inputs `[..., in]` to outputs `[..., out]`."""
        numbers, scale = quantise_rows(x.flatten(0, -2))
        product = self._multiply(numbers)
        return (product.float() * scale * self.scale).to(x.dtype).unflatten(0, x.shape[:-1])

    def of_rows(self, x: Rows) -> Rows:
        """The outputs of rounded inputs, with the factors that they still want."""
        return Rows(self._multiply(x.numbers), x.of_row, self.scale)

    def _multiply(self, numbers: Tensor) -> Tensor:
        """Products of what 8 bits hold: bfloat16 by hardware, float32 where they are simulated."""
        if not numbers.is_cuda:
            return functional.linear(numbers.float(), self.weight.float())
        return torch._scaled_mm(
            numbers, self.weight.t(), scale_a=self.one, scale_b=self.one, out_dtype=torch.bfloat16, use_fast_accum=True
        )


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
