"""A Triton kernel for `x @ weight.T` of up to 16 rows, whose cost is reading the weight once; weights are as wide as
`x`, or 8-bit.

Knows tiles and loops, and what a Llama layer does just before and after a product: root-mean-square norm of its inputs,
SiLU of one half of the outputs times the other, a residual. Knows nothing of layers, nor of when it is worth while
(`policy.acceleration.kernel_layer`).

Each program makes some outputs of all rows and walks through all columns of `x` by itself, so every sum has one fixed
order and results do not depend on timing. Tiles are turned: a tile's rows are outputs, its columns tokens, as
tensor cores want many of the former and are content with few of the latter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from policy.acceleration.rows import SHORT


@dataclass(frozen=True, slots=True)
class Tile:
    """Sizes of a program's part: outputs and columns at a time; warps that share it, and loads under way."""

    outputs: int
    columns: int
    warps: int
    stages: int


def tile_for(outputs: int, weight_bytes: int) -> Tile:
    """The tile for so many outputs. A function of sizes only: what a machine happens to time faster must not decide.

    A program has 32 outputs, so that the 4096 of a 7B model's layers occupy some 130 processors, or 64 where there are
    outputs enough, and as many loads under way as fit into 96 KiB, which is what consumer GPUs have. Of twelve tiles
    these were the fastest on an H200, or within 2% of it, at 1, 7 and 14 rows in all four products of a layer.
    """
    if weight_bytes > 1 and outputs >= 8192:
        return Tile(64, 128, warps=4, stages=4 if outputs < 16384 else 5)
    return Tile(32, 256, warps=4, stages=4)


def multiply(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    *,
    epsilon: float | None = None,
    gated: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """`x @ (scale * weight).T`, `[M, N]` in x's dtype, summed in float32; then the residual is added.

    x: `[M, K]`. weight: `[N, K]`, contiguous, in x's dtype or int8. scale: float32 `[N]`, a factor for each output.
    epsilon: divide by the root of each row's mean square plus this. gated: the weight has 2 N rows, and the result is
    SiLU of the first N outputs times the others. residual: `[M, N]`, contiguous.
    Raises ValueError for more rows than `policy.acceleration.rows.SHORT`.
    """
    (rows, columns), wide = x.shape, weight.shape[0]
    outputs = wide // 2 if gated else wide
    if rows > SHORT:
        raise ValueError(f"the kernel multiplies up to {SHORT} rows, got {rows}; use torch.nn.functional.linear")
    y = x.new_empty(rows, outputs)
    tile = tile_for(wide, weight.element_size())
    with torch.cuda.device_of(x):
        _product[(triton.cdiv(wide, tile.outputs),)](
            x,
            weight,
            y if scale is None else scale,
            y if residual is None else residual,
            y,
            rows,
            outputs,
            columns,
            x.stride(0),
            0.0 if epsilon is None else epsilon,
            tile_rows=SHORT,
            tile_outputs=tile.outputs,
            tile_columns=tile.columns,
            steps=triton.cdiv(columns, tile.columns),
            scaled=scale is not None,
            normed=epsilon is not None,
            gated=gated,
            added=residual is not None,
            whole_columns=columns % tile.columns == 0,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return y


@triton.jit(do_not_specialize=["rows"])  # one token as many: for a single one, loads would be laid out otherwise
def _product(
    x,
    weight,
    scale,
    residual,
    y,
    rows,
    outputs,
    columns,
    row_stride,
    epsilon,
    tile_rows: tl.constexpr,
    tile_outputs: tl.constexpr,
    tile_columns: tl.constexpr,
    steps: tl.constexpr,
    scaled: tl.constexpr,
    normed: tl.constexpr,
    gated: tl.constexpr,
    added: tl.constexpr,
    whole_columns: tl.constexpr,
):
    tile, place = tl.program_id(0), tl.arange(0, tile_outputs)
    row, column = tl.arange(0, tile_rows), tl.arange(0, tile_columns)
    # Tokens that are not there are not read: many programs that read one token's lines many times wait for each other.
    there = row < rows
    if gated:  # half of the tile's rows are gates, the other half what they are for
        half: tl.constexpr = tile_outputs // 2
        gate = tile * half + place % half
        inside_output = tl.where(gate < outputs, gate, 0) + place // half * outputs
    else:
        output = tile * tile_outputs + place
        inside_output = tl.where(output < outputs, output, 0)
    x_at = x + row[None, :] * row_stride + column[:, None]
    weight_rows = weight + inside_output[:, None].to(tl.int64) * columns
    weight_at = weight_rows + column[None, :]
    total = tl.zeros((tile_outputs, tile_rows), tl.float32)
    squares = tl.zeros((tile_columns, tile_rows), tl.float32)
    for step in range(steps):
        start = step * tile_columns
        if whole_columns:
            numbers = tl.load(x_at + start, mask=there[None, :], other=0.0)
            factors = tl.load(weight_at + start)
        else:
            inside = start + column < columns
            numbers = tl.load(x_at + start, mask=inside[:, None] & there[None, :], other=0.0)
            factors = tl.load(weight_at + start, mask=inside[None, :], other=0.0)
        total = tl.dot(factors.to(numbers.dtype), numbers, total)
        if normed:
            exact = numbers.to(tl.float32)
            squares += exact * exact
    if scaled:
        total *= tl.load(scale + inside_output)[:, None]
    if normed:
        total *= tl.rsqrt(tl.sum(squares, 0) / columns + epsilon)[None, :]
    kind = y.dtype.element_ty
    if gated:
        pairs = tl.permute(tl.reshape(total.to(kind).to(tl.float32), (2, half, tile_rows)), (1, 2, 0))
        gates, values = tl.split(pairs)
        result = (gates * tl.sigmoid(gates)).to(kind).to(tl.float32) * values
        output = tile * half + tl.arange(0, half)
    else:
        result = total
    inside_both = there[None, :] & (output[:, None] < outputs)
    result_at = row[None, :] * outputs + output[:, None]
    if added:
        before = tl.load(residual + result_at, mask=inside_both, other=0.0).to(tl.float32)
        result = before + result.to(kind).to(tl.float32)
    tl.store(y + result_at, result.to(kind), mask=inside_both)
