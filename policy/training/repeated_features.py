"""Axes of tensors that are widened by copying features, and tensors with such axes.

Knows arithmetic on index lists. Knows nothing of networks (`policy.training.widen`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """The features along one side of a wide tensor.

    origin: int64 `[wide]`, the small network's feature that each one copies.
    share: float32 `[wide]`, the part of the small weight that a copy is read with; those of a feature add up to 1.
    """

    origin: Tensor
    share: Tensor

    @classmethod
    def cyclic(cls, small: int, wide: int) -> Axis:
        """The small axis again and again until there are `wide` features; not all need to be copied equally often.

        Features of attention heads lie head by head, so this repeats whole heads.
        Shares are powers of two, by which weights of any number format are multiplied exactly: of m copies, with 2^p
        the largest power of two in m, 2^p equal shares of which m - 2^p are halved once more.
        """
        position = torch.arange(wide)
        copies = wide // small + (position % small < wide % small).double()
        power = torch.exp2(torch.frexp(copies).exponent - 1.0)
        halved = position // small < 2 * (copies - power)
        return cls(position % small, torch.where(halved, 0.5 / power, 1 / power).float())

    @property
    def written(self) -> Axis:
        """For the side that is written, where every copy has the whole value."""
        return replace(self, share=torch.ones_like(self.share))


def joined(axes: Sequence[Axis], small_sizes: Sequence[int]) -> Axis:
    """Axes one behind the other. small_sizes: their lengths in the small network."""
    offsets = [sum(small_sizes[:index]) for index in range(len(axes))]
    origin = torch.cat([axis.origin + offset for axis, offset in zip(axes, offsets, strict=True)])
    return Axis(origin, torch.cat([axis.share for axis in axes]))


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """How one layer's tensors are widened.

    output: axis of its rows, of its bias, or of the only features it has. input: axis of its columns, for a matrix.
    """

    output: Axis
    input: Axis | None = None

    def widened(self, tensor: Tensor) -> Tensor:
        """A vector `[F]`, matrix `[out, in]`, convolution `[out, 3, h, w]` or row of tokens `[1, tokens, F]`, wide."""
        if self.input is not None and tensor.ndim == 2:  # columns first: multiplying is cheaper before rows are copied
            share = self.input.share.to(tensor.device, tensor.dtype)
            tensor = tensor.index_select(1, self.input.origin.to(tensor.device)) * share
        return tensor.index_select(2 if tensor.ndim == 3 else 0, self.output.origin.to(tensor.device))
