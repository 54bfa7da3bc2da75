"""A Triton kernel for attention in a pass of few tokens: rotary positions, new entries of the cache, and attention.

Knows one layer's cache. Knows nothing of layers, nor of when it is worth while (`policy.acceleration.products`).

One program a head and row of the batch: it turns its queries and keys, writes keys and values to the cache and then
walks through the cache with a running softmax (Milakov and Gimelshein 2018, "Online normalizer calculation for
softmax"). A short pass is so little work for a GPU that the three or four launches which this replaces cost more.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_KEYS = 64  # of the cache at a time
_LOG2_E = 1.4426950408889634


def attend(
    qkv: Tensor, cosine: Tensor, sine: Tensor, keys: Tensor, values: Tensor, slots: Tensor, bias: Tensor
) -> Tensor:
    """Attended values `[B, S, heads * D]`; writes to the cache.

    qkv: `[B, S, (heads + 2 * key heads) * D]`, contiguous. cosine, sine: `[B, 1, S, D]`, contiguous. keys, values: one
    layer's cache, `[B, key heads, length, D]`, both laid out alike, D a power of two. slots: int64 `[B, S]`, each row's
    own. bias: `[B, 1, S, length]`, 0 where a token may look, else -inf.
    """
    batch, tokens, width = qkv.shape
    _, key_heads, length, size = keys.shape
    heads = width // size - 2 * key_heads
    attended = qkv.new_empty(batch, tokens, heads * size)
    with torch.cuda.device_of(qkv):
        _attend[heads, batch](
            qkv,
            cosine,
            sine,
            keys,
            values,
            slots,
            bias,
            attended,
            tokens,
            length,
            heads,
            key_heads,
            *keys.stride()[:3],
            slots.stride(0),
            bias.stride(0),
            bias.stride(2),
            _LOG2_E * size**-0.5,
            size=size,
            queries_at_once=max(16, triton.next_power_of_2(tokens)),
            keys_at_once=_KEYS,
            steps=triton.cdiv(length, _KEYS),
            num_warps=4,
            num_stages=2,
        )
    return attended


@triton.jit
def _attend(
    qkv,
    cosine,
    sine,
    keys,
    values,
    slots,
    bias,
    attended,
    tokens,
    length,
    heads,
    key_heads,
    batch_stride,
    head_stride,
    slot_stride,
    slots_stride,
    bias_batch_stride,
    bias_stride,
    scale,
    size: tl.constexpr,
    queries_at_once: tl.constexpr,
    keys_at_once: tl.constexpr,
    steps: tl.constexpr,
):
    head, row = tl.program_id(0), tl.program_id(1)
    key_head = head // (heads // key_heads)
    token = tl.arange(0, queries_at_once)
    live = token < tokens
    inside = tl.where(live, token, 0)  # what lies outside is read from the first token, and not written
    feature = tl.arange(0, size)
    # Half-split rotary layout: x * cosine + (-second half, first half) * sine.
    half: tl.constexpr = size // 2
    partner = tl.where(feature < half, feature + half, feature - half)[None, :]
    own = feature[None, :]
    table = (row * tokens + inside[:, None]) * size + own
    cosines = tl.load(cosine + table).to(tl.float32)
    sines = tl.load(sine + table).to(tl.float32) * tl.where(feature < half, -1.0, 1.0)[None, :]
    token_at = qkv + (row * tokens + inside[:, None]) * ((heads + 2 * key_heads) * size)
    query_at, key_at = token_at + head * size, token_at + (heads + key_head) * size
    query = tl.load(query_at + own).to(tl.float32) * cosines + tl.load(query_at + partner).to(tl.float32) * sines
    query = query.to(qkv.dtype.element_ty)
    new_key = tl.load(key_at + own).to(tl.float32) * cosines + tl.load(key_at + partner).to(tl.float32) * sines
    new_value = tl.load(token_at + (heads + key_heads + key_head) * size + own)

    cache = row.to(tl.int64) * batch_stride + key_head * head_stride
    slot = tl.load(slots + row * slots_stride + inside)[:, None] * slot_stride
    # Heads that share keys write the same numbers to the same places.
    tl.store(keys + cache + slot + own, new_key.to(keys.dtype.element_ty), mask=live[:, None])
    tl.store(values + cache + slot + own, new_value, mask=live[:, None])
    tl.debug_barrier()  # all of this program's threads have written before any reads

    top = tl.full((queries_at_once,), -1e30, tl.float32)
    total = tl.zeros((queries_at_once,), tl.float32)
    weighted = tl.zeros((queries_at_once, size), tl.float32)
    bias_at = bias + row * bias_batch_stride + inside[:, None] * bias_stride
    for step in range(steps):
        place = step * keys_at_once + tl.arange(0, keys_at_once)
        there = place < length
        place = tl.where(there, place, 0)
        some_keys = tl.load(keys + cache + place[None, :] * slot_stride + feature[:, None])
        some_values = tl.load(values + cache + place[:, None] * slot_stride + own)
        allowed = tl.load(bias_at + place[None, :], mask=there[None, :], other=float("-inf")).to(tl.float32)
        scores = tl.dot(query, some_keys) * scale + allowed
        higher = tl.maximum(top, tl.max(scores, 1))
        shares = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(shares, 1)
        weighted = weighted * shrink[:, None] + tl.dot(shares.to(some_values.dtype), some_values)
        top = higher
    # A token that may look nowhere, as padding does, gets zeros.
    result = weighted / tl.where(total > 0, total, 1.0)[:, None]
    result_at = attended + ((row * tokens + token[:, None]) * heads + head) * size + own
    tl.store(result_at, result.to(attended.dtype.element_ty), mask=live[:, None])
