"""A Triton kernel for attention of a few tokens over one layer's cache, which turns and stores their keys as well.

Knows queries, a cache and what may be looked at. Knows nothing of layers, nor of when it is worth while
(`policy.acceleration.kernel_layer`).

A program has one head and one row of the batch. It walks through the cache with a running softmax (Milakov and
Gimelshein 2018, "Online normalizer calculation for softmax"), so every sum has one fixed order. It has all of a head's
queries, so it can also apply rotary positions and write the cache's new entries itself: a short pass is so little work
for a GPU that the three or four launches which this saves cost more.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from policy.acceleration.row_kernels import factors_of, multiplied
from policy.acceleration.rows import Rows

_LOG2_E = 1.4426950408889634
# Keys looked at in one step.
_KEYS = 128


def attend_with_new(
    qkv: Rows,
    cosine: Tensor,
    sine: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    bias: Tensor,
) -> Tensor:
    """Attended values `[B, S, heads * D]` of a few tokens, whose keys and values go to the cache first.

    qkv: rows of B * S tokens, `(heads + 2 * key heads) * D` wide, before rotary positions. cosine, sine:
    `[B, 1, S, D]`, contiguous. slots: int64 `[B, S]`, contiguous, where each token's key and value go. keys, values:
    one layer's cache, `[B, key heads, length, D]`, D a power of two, both laid out alike. bias: `[B, 1, S, length]`,
    0 where a token may look, else -inf. The last axis of each is dense.
    """
    (batch, tokens), (_, key_heads, length, size) = slots.shape, keys.shape
    heads = qkv.numbers.shape[1] // size - 2 * key_heads
    attended = keys.new_empty(batch, tokens, heads * size)
    with torch.cuda.device_of(keys):
        _attend_with_new[heads, batch](
            *factors_of(qkv, keys),
            cosine,
            sine,
            slots,
            *_cache(keys, values, bias, heads),
            attended,
            tokens,
            _LOG2_E * size**-0.5,
            scaled=qkv.of_row is not None,
            size=size,
            queries_at_once=max(16, triton.next_power_of_2(tokens)),
            keys_at_once=_KEYS,
            steps=triton.cdiv(length, _KEYS),
            num_warps=4,
            num_stages=2,
        )
    return attended


def _cache(keys: Tensor, values: Tensor, bias: Tensor, heads: int) -> tuple[Tensor | int, ...]:
    """The kernels' arguments from `keys` to `sharing`."""
    return keys, values, *keys.stride()[:3], keys.shape[2], bias, bias.stride(0), bias.stride(2), heads // keys.shape[1]


@triton.jit
def _attend_with_new(
    qkv,
    of_row,
    of_column,
    cosine,
    sine,
    slots,
    keys,
    values,
    batch_stride,
    head_stride,
    slot_stride,
    length,
    bias,
    bias_batch_stride,
    bias_stride,
    sharing,
    attended,
    tokens,
    scale,
    scaled: tl.constexpr,
    size: tl.constexpr,
    queries_at_once: tl.constexpr,
    keys_at_once: tl.constexpr,
    steps: tl.constexpr,
):
    head, heads, row = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    key_heads, key_head = heads // sharing, head // sharing
    cache = row.to(tl.int64) * batch_stride + key_head * head_stride
    token = tl.arange(0, queries_at_once)
    live = token[:, None] < tokens
    inside = tl.where(token < tokens, token, 0)
    feature = tl.arange(0, size)
    # Half-split rotary layout: x * cosine + (-second half, first half) * sine.
    half: tl.constexpr = size // 2
    partner = tl.where(feature < half, feature + half, feature - half)[None, :]
    own = feature[None, :]
    table = (row * tokens + inside[:, None]) * size + own
    cosines = tl.load(cosine + table).to(tl.float32)
    sines = tl.load(sine + table).to(tl.float32) * tl.where(feature < half, -1.0, 1.0)[None, :]
    numbers = qkv + (row * tokens + inside[:, None]) * ((heads + 2 * key_heads) * size)
    query_at, key_at, value_at = head * size, (heads + key_head) * size, (heads + key_heads + key_head) * size
    factor = tl.load(of_row + row * tokens + inside)[:, None] if scaled else 1.0
    kind: tl.constexpr = keys.dtype.element_ty
    query = _read(numbers, query_at + own, factor, of_column, scaled, kind) * cosines
    query += _read(numbers, query_at + partner, factor, of_column, scaled, kind) * sines
    new_key = _read(numbers, key_at + own, factor, of_column, scaled, kind) * cosines
    new_key += _read(numbers, key_at + partner, factor, of_column, scaled, kind) * sines
    new_value = _read(numbers, value_at + own, factor, of_column, scaled, kind)

    new_at = cache + tl.load(slots + row * tokens + inside)[:, None] * slot_stride + own
    # Heads that share keys write the same numbers to the same places.
    tl.store(keys + new_at, new_key.to(kind), mask=live)
    tl.store(values + new_at, new_value.to(kind), mask=live)
    tl.debug_barrier()  # all of this program's threads have written before any reads

    query = query.to(kind)
    bias_at = bias + row * bias_batch_stride + inside[:, None] * bias_stride
    result = _walk(query, keys + cache, values + cache, slot_stride, length, bias_at, scale, keys_at_once, steps)
    result_at = attended + ((row * tokens + token[:, None]) * heads + head) * size + own
    tl.store(result_at, result.to(attended.dtype.element_ty), mask=live)


@triton.jit
def _read(numbers, at, factor, of_column, scaled: tl.constexpr, kind: tl.constexpr):
    """Numbers in float32, after their factors where they have some."""
    found = tl.load(numbers + at).to(tl.float32)
    if scaled:
        found = multiplied(found, factor, of_column, at, at >= 0, kind)
    return found


@triton.jit
def _walk(query, keys, values, slot_stride, length, bias_at, scale, keys_at_once: tl.constexpr, steps: tl.constexpr):
    """Attended values, float32 `[queries, size]`, of one head's queries over its cache."""
    feature = tl.arange(0, query.shape[1])
    top = tl.full((query.shape[0],), -1e30, tl.float32)
    total = tl.zeros((query.shape[0],), tl.float32)
    weighted = tl.zeros(query.shape, tl.float32)
    for step in range(steps):
        place = step * keys_at_once + tl.arange(0, keys_at_once)
        there = place < length
        place = tl.where(there, place, 0)
        some_keys = tl.load(keys + place[None, :] * slot_stride + feature[:, None])
        some_values = tl.load(values + place[:, None] * slot_stride + feature[None, :])
        allowed = tl.load(bias_at + place[None, :], mask=there[None, :], other=float("-inf")).to(tl.float32)
        scores = tl.dot(query, some_keys) * scale + allowed
        higher = tl.maximum(top, tl.max(scores, 1))
        shares = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(shares, 1)
        weighted = weighted * shrink[:, None] + tl.dot(shares.to(some_values.dtype), some_values)
        top = higher
    # A token that may look nowhere, as padding does, gets zeros.
    return weighted / tl.where(total > 0, total, 1.0)[:, None]
