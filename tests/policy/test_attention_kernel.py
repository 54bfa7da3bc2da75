"""Attention by kernels of our own is PyTorch's, and the cache holds what it should.

Without a GPU, the kernel is run by Triton's interpreter where Triton is installed and asked for it:
`TRITON_INTERPRET=1 pytest tests/policy/test_attention_kernel.py`.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from policy.acceleration.rows import Rows
from policy.openvla.language_model import rotary_tables, rotate

CUDA = torch.cuda.is_available()
# The interpreter has no bfloat16.
DEVICE, DTYPE, ROUNDING = (
    (torch.device("cuda"), torch.bfloat16, 2e-2) if CUDA else (torch.device("cpu"), torch.half, 2e-3)
)
needs_kernel = pytest.mark.skipif(
    not CUDA and os.environ.get("TRITON_INTERPRET") != "1", reason="needs a GPU or TRITON_INTERPRET=1"
)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, DTYPE)


def tree(batch: int, tokens: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions that repeat, slots without order, and a mask of any shape as a bias whose rows lie apart."""
    generator = torch.Generator().manual_seed(3)
    positions = torch.randint(length, (batch, tokens), generator=generator)
    slots = torch.stack([torch.randperm(length, generator=generator)[:tokens] for _ in range(batch)])
    mask = torch.rand(batch, 1, tokens, length, generator=generator) < 0.4
    mask[..., 0] = True
    bias = torch.full((batch, 1, tokens, length + 11), float("-inf"))[..., :length].masked_fill(mask, 0.0)
    return positions.to(DEVICE), slots.to(DEVICE), bias.to(DEVICE, DTYPE)


@needs_kernel
@pytest.mark.parametrize(("tokens", "heads", "key_heads", "length"), [(1, 2, 2, 40), (7, 4, 2, 64), (16, 2, 1, 150)])
def test_attention_over_a_cache_that_the_pass_writes_to(tokens: int, heads: int, key_heads: int, length: int) -> None:
    pytest.importorskip("triton")
    from policy.acceleration.attention_kernel import attend_with_new

    size, batch = 32, 2
    qkv = numbers(batch, tokens, (heads + 2 * key_heads) * size)
    # A layer's part of a larger cache.
    found, want = (numbers(2, batch, key_heads, length + 5, size, seed=1)[..., :length, :] for _ in range(2))
    positions, slots, bias = tree(batch, tokens, length)
    tables = rotary_tables(positions, size, 1e4, DTYPE)

    attended = attend_with_new(Rows(qkv.flatten(0, 1)), *tables, found[0], found[1], slots, bias)

    split = qkv.unflatten(-1, (-1, size)).transpose(1, 2)
    rotated = rotate(split[:, : heads + key_heads].float(), *(table.float() for table in tables))
    rows = torch.arange(batch, device=DEVICE)[:, None]
    want[0][rows, :, slots] = rotated[:, heads:].transpose(1, 2).to(DTYPE)
    want[1][rows, :, slots] = split[:, heads + key_heads :].transpose(1, 2)
    exact = functional.scaled_dot_product_attention(
        rotated[:, :heads], want[0].float(), want[1].float(), attn_mask=bias.float(), enable_gqa=True
    )
    torch.testing.assert_close(found, want, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(attended.float(), exact.transpose(1, 2).flatten(2), rtol=ROUNDING, atol=ROUNDING)


@needs_kernel
def test_factors_that_a_product_left_come_first() -> None:
    pytest.importorskip("triton")
    from policy.acceleration.attention_kernel import attend_with_new

    positions, slots, bias = tree(2, 3, 40)
    tables = rotary_tables(positions, 32, 1e4, DTYPE)
    qkv = numbers(6, 4 * 32)
    of_row, of_column = (torch.rand(count, device=DEVICE) + 0.5 for count in (6, 128))
    found, want = (numbers(2, 2, 1, 40, 32, seed=1) for _ in range(2))
    rows = Rows(qkv, of_row, of_column)
    attended = attend_with_new(rows, *tables, found[0], found[1], slots, bias)
    plain = attend_with_new(Rows(rows.multiplied(DTYPE)), *tables, want[0], want[1], slots, bias)
    torch.testing.assert_close(found, want, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(attended, plain, rtol=ROUNDING, atol=ROUNDING)


@needs_kernel
def test_a_token_that_may_look_nowhere_gets_zeros() -> None:
    pytest.importorskip("triton")
    from policy.acceleration.attention_kernel import attend_with_new

    positions, slots, bias = tree(1, 3, 40)
    bias[:, :, 1] = float("-inf")
    tables = rotary_tables(positions, 32, 1e4, DTYPE)
    attended = attend_with_new(Rows(numbers(3, 96)), *tables, numbers(1, 1, 40, 32), numbers(1, 1, 40, 32), slots, bias)
    assert attended[0, 1].eq(0).all()
    assert torch.isfinite(attended).all()
    assert attended[0, 0].ne(0).any()
