"""Patches by a matrix product instead of a convolution.

Knows one layer of the vision towers. A convolution whose steps are as long as its kernel is a product of each patch's
pixels with the weights; cuDNN takes 62 microseconds for a picture on an H200, as long as eight products of a block.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from policy.openvla.vision import PatchEmbedding, patch_rows

# Matrix products want rows that start at multiples of 16 bytes: 588 numbers are filled up to 592.
_ALIGNMENT = 8


class PatchProduct(nn.Module):
    """Takes the place of a PatchEmbedding and has its weights, laid out as a matrix."""

    def __init__(self, embedding: PatchEmbedding) -> None:
        super().__init__()
        flat = embedding.proj.weight.detach().flatten(1)  # [width, 3 * 14 * 14]
        self.padding = -flat.shape[1] % _ALIGNMENT
        self.register_buffer("weight", functional.pad(flat, (0, self.padding)))
        self.register_buffer("bias", None if embedding.proj.bias is None else embedding.proj.bias.detach())

    weight: Tensor
    bias: Tensor | None

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels `[B, 3, H, W]` to `[B, patches, width]`, patches row by row."""
        return functional.linear(functional.pad(patch_rows(pixels), (0, self.padding)), self.weight, self.bias)
