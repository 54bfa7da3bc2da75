"""Triton kernels for what a Llama layer does between its matrix products, one launch each, for passes of any length.

Knows a layer's steps between products: residual and root-mean-square norm, rotary positions and the cache's new
entries, SiLU of one half times the other; and the rounding to 8 bits of what a product takes. Knows nothing of layers.

A product of 8-bit numbers leaves its scales to be applied here, so each kernel takes rows with the factors they still
want. What PyTorch rounds between two operations is rounded here, too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from policy.acceleration.rows import LARGEST, TINY, Rows

_LARGEST, _TINY = tl.constexpr(LARGEST), tl.constexpr(TINY)
# Heads that one program turns or stores.
_HEADS = 8


def add_and_norm(x: Tensor, added: Rows | None, epsilon: float, rounded: bool) -> tuple[Tensor, Rows]:
    """The sum of `x` `[R, C]` and `added`, and each of its rows over the root of its mean square plus `epsilon`.

    rounded: the second as 8-bit numbers with a factor for each row.
    """
    x = x.contiguous()
    rows, columns = x.shape
    total = x if added is None else torch.empty_like(x)
    normed, factors = _outputs(x, columns, rounded)
    with torch.cuda.device_of(x):
        _add_and_norm[(rows,)](
            x,
            *factors_of(added, x),
            total,
            normed,
            factors,
            columns,
            epsilon,
            added=added is not None,
            scaled=added is not None and added.of_row is not None,
            rounded=rounded,
            block=triton.next_power_of_2(columns),
            num_warps=8,
        )
    return total, Rows(normed, factors if rounded else None)


def gate(both: Rows, rounded: bool) -> Rows:
    """SiLU of the first half of each row `[R, 2 C]` times the second half; `rounded` as for `add_and_norm`."""
    rows, columns = both.numbers.shape[0], both.numbers.shape[1] // 2
    gated, factors = _outputs(both.numbers, columns, rounded)
    # A row's largest number is wanted before any can be rounded.
    block = triton.next_power_of_2(columns) if rounded else min(2048, triton.next_power_of_2(columns))
    with torch.cuda.device_of(gated):
        _gate[rows, triton.cdiv(columns, block)](
            *factors_of(both, both.numbers),
            gated,
            factors,
            columns,
            scaled=both.of_row is not None,
            rounded=rounded,
            block=block,
            num_warps=32 if rounded else 4,
        )
    return Rows(gated, factors if rounded else None)


def round_rows(x: Tensor) -> Rows:
    """Rows `[R, C]` as 8-bit numbers with a factor for each."""
    x = x.contiguous()
    rounded, factors = _outputs(x, x.shape[1], rounded=True)
    with torch.cuda.device_of(x):
        _round[(x.shape[0],)](x, rounded, factors, x.shape[1], block=triton.next_power_of_2(x.shape[1]), num_warps=8)
    return Rows(rounded, factors)


def turn_and_store(
    qkv: Rows, cosine: Tensor, sine: Tensor, keys: Tensor, values: Tensor, slots: Tensor, dtype: torch.dtype
) -> Tensor:
    """Queries `[B, heads, S, D]` of `dtype` after rotary positions, laid out token by token; keys, turned alike, and
    values go to the cache.

    qkv: rows of B * S tokens, `(heads + 2 * key heads) * D` wide. cosine, sine: `[B, 1, S, D]`, contiguous. keys,
    values: one layer's cache, `[B, key heads, length, D]`, both laid out alike, last axis dense. slots: int64 `[B, S]`,
    contiguous.
    """
    (batch, tokens), (_, key_heads, _, size) = slots.shape, keys.shape
    total = qkv.numbers.shape[1] // size
    heads = total - 2 * key_heads
    queries = torch.empty(batch, tokens, heads, size, device=keys.device, dtype=dtype)
    with torch.cuda.device_of(keys):
        _turn_and_store[batch * tokens, triton.cdiv(total, _HEADS)](
            *factors_of(qkv, keys),
            cosine,
            sine,
            slots,
            queries,
            keys,
            values,
            *keys.stride()[:3],
            tokens,
            heads,
            key_heads,
            scaled=qkv.of_row is not None,
            size=size,
            block=triton.next_power_of_2(size),
            at_once=_HEADS,
            num_warps=4,
        )
    return queries.transpose(1, 2)


def _outputs(x: Tensor, columns: int, rounded: bool) -> tuple[Tensor, Tensor]:
    """Room for rows, and for their factors, of which there are none unless rounded."""
    numbers = torch.empty(x.shape[0], columns, device=x.device, dtype=torch.float8_e4m3fn if rounded else x.dtype)
    return numbers, torch.empty(x.shape[0] if rounded else 0, device=x.device)


def factors_of(rows: Rows | None, instead: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers, factors of rows and of columns, as kernels take them; what is not there is any tensor, and not read."""
    if rows is None:
        return instead, instead, instead
    if rows.of_row is None or rows.of_column is None:
        return rows.numbers, instead, instead
    return rows.numbers, rows.of_row, rows.of_column


@triton.jit
def _eight_bits(numbers):
    """Numbers of one row, float32 and 0 where there are none, as what 8 bits hold, and their factor."""
    factor = tl.maximum(tl.max(tl.abs(numbers), 0) / _LARGEST, _TINY)
    return tl.minimum(tl.maximum(numbers / factor, -_LARGEST), _LARGEST), factor


@triton.jit
def multiplied(numbers, factor, of_column, at, inside, kind: tl.constexpr):
    """Numbers in float32 after their factors, rounded as a product of `kind` is."""
    numbers = numbers.to(tl.float32) * factor * tl.load(of_column + at, mask=inside, other=0.0)
    return numbers.to(kind).to(tl.float32)


@triton.jit
def _add_and_norm(
    x,
    more,
    of_row,
    of_column,
    total,
    normed,
    factors,
    columns,
    epsilon,
    added: tl.constexpr,
    scaled: tl.constexpr,
    rounded: tl.constexpr,
    block: tl.constexpr,
):
    row, column = tl.program_id(0), tl.arange(0, block)
    inside, at = column < columns, tl.program_id(0) * columns + column
    kind: tl.constexpr = total.dtype.element_ty
    numbers = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if added:
        further = tl.load(more + at, mask=inside, other=0.0).to(tl.float32)
        if scaled:
            further = multiplied(further, tl.load(of_row + row), of_column, column, inside, kind)
        numbers = (numbers + further).to(kind).to(tl.float32)
        tl.store(total + at, numbers.to(kind), mask=inside)
    result = (numbers * tl.rsqrt(tl.sum(numbers * numbers, 0) / columns + epsilon)).to(kind)
    if rounded:
        small, factor = _eight_bits(result.to(tl.float32))
        tl.store(factors + row, factor)
        tl.store(normed + at, small.to(normed.dtype.element_ty), mask=inside)
    else:
        tl.store(normed + at, result, mask=inside)


@triton.jit
def _gate(
    both,
    of_row,
    of_column,
    gated,
    factors,
    columns,
    scaled: tl.constexpr,
    rounded: tl.constexpr,
    block: tl.constexpr,
):
    row, column = tl.program_id(0), tl.program_id(1) * block + tl.arange(0, block)
    inside, at = column < columns, both + row.to(tl.int64) * 2 * columns + column
    gates = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    others = tl.load(at + columns, mask=inside, other=0.0).to(tl.float32)
    # Rounded as a layer's numbers are, of which 8-bit numbers' products have the type, too.
    kind: tl.constexpr = both.dtype.element_ty
    if scaled:
        factor = tl.load(of_row + row)
        gates = multiplied(gates, factor, of_column, column, inside, kind)
        others = multiplied(others, factor, of_column, columns + column, inside, kind)
    result = ((gates * tl.sigmoid(gates)).to(kind).to(tl.float32) * others).to(kind)
    result_at = gated + row.to(tl.int64) * columns + column
    if rounded:
        small, factor = _eight_bits(result.to(tl.float32))
        tl.store(factors + row, factor)
        tl.store(result_at, small.to(gated.dtype.element_ty), mask=inside)
    else:
        tl.store(result_at, result, mask=inside)


@triton.jit
def _round(x, rounded, factors, columns, block: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, block)
    inside, at = column < columns, tl.program_id(0) * columns + column
    small, factor = _eight_bits(tl.load(x + at, mask=inside, other=0.0).to(tl.float32))
    tl.store(factors + row, factor)
    tl.store(rounded + at, small.to(rounded.dtype.element_ty), mask=inside)


@triton.jit
def _turn_and_store(
    qkv,
    of_row,
    of_column,
    cosine,
    sine,
    slots,
    queries,
    keys,
    values,
    batch_stride,
    head_stride,
    slot_stride,
    tokens,
    heads,
    key_heads,
    scaled: tl.constexpr,
    size: tl.constexpr,
    block: tl.constexpr,
    at_once: tl.constexpr,
):
    row, total = tl.program_id(0), heads + 2 * key_heads
    head = tl.program_id(1) * at_once + tl.arange(0, at_once)[:, None]
    feature = tl.arange(0, block)[None, :]
    inside = (head < total) & (feature < size)
    # Half-split rotary layout: x * cosine + (-second half, first half) * sine.
    half: tl.constexpr = size // 2
    partner = tl.where(feature < half, feature + half, feature - half)
    own_at, partner_at = head * size + feature, head * size + partner
    kind: tl.constexpr = queries.dtype.element_ty
    start = qkv + row.to(tl.int64) * total * size
    own = tl.load(start + own_at, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(start + partner_at, mask=inside, other=0.0).to(tl.float32)
    if scaled:
        factor = tl.load(of_row + row)
        own = multiplied(own, factor, of_column, own_at, inside, kind)
        other = multiplied(other, factor, of_column, partner_at, inside, kind)
    table = row * size + feature
    cosines = tl.load(cosine + table, mask=feature < size, other=0.0).to(tl.float32)
    sines = tl.load(sine + table, mask=feature < size, other=0.0).to(tl.float32)
    turned = (own * cosines + other * tl.where(feature < half, -sines, sines)).to(kind)
    is_query, is_value = head < heads, head >= heads + key_heads
    is_key = (head >= heads) & (head < heads + key_heads)
    tl.store(queries + (row.to(tl.int64) * heads + head) * size + feature, turned, mask=inside & is_query)
    stored = row // tokens * batch_stride + tl.load(slots + row) * slot_stride + feature
    key_at = stored + (head - heads).to(tl.int64) * head_stride
    tl.store(keys + key_at, turned.to(keys.dtype.element_ty), mask=inside & is_key)
    value_at = stored + (head - heads - key_heads).to(tl.int64) * head_stride
    tl.store(values + value_at, own.to(values.dtype.element_ty), mask=inside & is_value)
