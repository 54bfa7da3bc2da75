"""Rows of numbers on their way between products and what lies between them.

Knows which factors a row may still want, and which GPUs run kernels of our own. Knows nothing of kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

# The largest number of the 8-bit format e4m3, and the smallest factor, for rows of zeros.
LARGEST = torch.finfo(torch.float8_e4m3fn).max
TINY = 1e-12
# Tokens, over the whole batch, up to which a pass is a short one. On an H200 with the sizes of a 7B model a layer takes
# 126 us by five launches and 145 compiled at 14 tokens, 122 and 133 at one; the four products alone take 112 us against
# 111 at 14 tokens, and took 198 against 117 at 40 (docs/log.md).
SHORT = 16
# Compute capability from which GPUs multiply bfloat16.
_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True)
class Rows:
    """Numbers `[R, C]`, to be multiplied by a factor of their row, float32 `[R]`, and one of their column, float32
    `[C]`, where there are such.
    """

    numbers: Tensor
    of_row: Tensor | None = None
    of_column: Tensor | None = None

    def multiplied(self, dtype: torch.dtype) -> Tensor:
        """The numbers after their factors."""
        numbers = self.numbers
        if self.of_row is not None:
            numbers = numbers.float() * self.of_row[:, None]
        if self.of_column is not None:
            numbers = numbers.float() * self.of_column
        return numbers.to(dtype)


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
