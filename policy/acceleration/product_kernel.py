"""A Triton kernel for `x @ weight.T` whose cost is reading the weight once; weights are as wide as `x`, or 8-bit.

Knows tiles and loops. Knows nothing of layers, nor of when it is worth while (`policy.acceleration.products`).

Each program makes one tile of the result and walks through all columns of `x` by itself, so every sum has one fixed
order and results do not depend on timing. Tiles are turned: a tile's rows are outputs, its columns tokens, as
tensor cores want many of the former and are content with few of the latter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tile:
    """Sizes of a program's part: tokens, outputs and columns at a time; warps that share it, and loads under way."""

    rows: int
    outputs: int
    columns: int
    warps: int
    stages: int


def tile_for(rows: int, outputs: int, weight_bytes: int) -> Tile:
    """The tile for so many tokens and outputs. A function of sizes only: what a machine happens to time faster must not
    decide.

    Few rows have 32 outputs a program, so that the 4096 of a 7B model's layers occupy some 130 processors, or 64 where
    there are outputs enough, and as many loads under way as fit into 96 KiB, which is what consumer GPUs have. Of seven
    tiles these were the fastest on an H200, or within 2% of it, at 14 rows in all four products of a layer.
    """
    if rows <= 16:
        if weight_bytes > 1 and outputs >= 8192:
            return Tile(16, 64, 128, warps=4, stages=5)
        return Tile(16, 32, 256, warps=4, stages=4)
    if rows <= 32:
        return Tile(32, 32, 256, warps=4, stages=4)
    if rows <= 64:
        return Tile(64, 32, 128, warps=4, stages=4)
    return Tile(128, 128, 64, warps=8, stages=4)


def multiply(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """`x @ (scale * weight).T`, `[M, N]` in x's dtype, summed in float32.

    x: `[M, K]`. weight: `[N, K]`, contiguous, in x's dtype or int8. scale: float32 `[N]`, a factor for each output.
    """
    (rows, columns), outputs = x.shape, weight.shape[0]
    y = x.new_empty(rows, outputs)
    tile = tile_for(rows, outputs, weight.element_size())
    grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs),)
    with torch.cuda.device_of(x):
        _product[grid](
            x,
            weight,
            y if scale is None else scale,
            y,
            rows,
            outputs,
            columns,
            x.stride(0),
            tile_rows=tile.rows,
            tile_outputs=tile.outputs,
            tile_columns=tile.columns,
            steps=triton.cdiv(columns, tile.columns),
            scaled=scale is not None,
            whole_columns=columns % tile.columns == 0,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return y


@triton.jit
def _product(
    x,
    weight,
    scale,
    y,
    rows,
    outputs,
    columns,
    row_stride,
    tile_rows: tl.constexpr,
    tile_outputs: tl.constexpr,
    tile_columns: tl.constexpr,
    steps: tl.constexpr,
    scaled: tl.constexpr,
    whole_columns: tl.constexpr,
):
    # Programs that follow each other read the same part of the weight, so further rows find it in the cache.
    row_tiles = tl.cdiv(rows, tile_rows)
    row = tl.program_id(0) % row_tiles * tile_rows + tl.arange(0, tile_rows)
    output = tl.program_id(0) // row_tiles * tile_outputs + tl.arange(0, tile_outputs)
    column = tl.arange(0, tile_columns)
    # What lies outside is read from the first row, and not written.
    inside_row = tl.where(row < rows, row, 0)
    inside_output = tl.where(output < outputs, output, 0)
    x_at = x + inside_row[None, :] * row_stride + column[:, None]
    weight_at = weight + inside_output[:, None].to(tl.int64) * columns + column[None, :]
    total = tl.zeros((tile_outputs, tile_rows), tl.float32)
    for step in range(steps):
        start = step * tile_columns
        if whole_columns:
            numbers, factors = tl.load(x_at + start), tl.load(weight_at + start)
        else:
            inside = start + column < columns
            numbers = tl.load(x_at + start, mask=inside[:, None], other=0.0)
            factors = tl.load(weight_at + start, mask=inside[None, :], other=0.0)
        total = tl.dot(factors.to(numbers.dtype), numbers, total)
    if scaled:
        total *= tl.load(scale + inside_output)[:, None]
    inside_both = (row[None, :] < rows) & (output[:, None] < outputs)
    tl.store(y + row[None, :] * outputs + output[:, None], total.to(y.dtype.element_ty), mask=inside_both)
