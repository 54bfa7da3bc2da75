"""A layer by kernels of our own gives what PyTorch's operations do, and leaves the cache as they do.

Without a GPU, the kernels are run by Triton's interpreter where Triton is installed and asked for it:
`TRITON_INTERPRET=1 pytest tests/policy/test_kernel_layer.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from policy.acceleration import rows as own_rows
from policy.acceleration.float8 import CAPABILITY, Float8Linear, quantise_rows
from policy.acceleration.fused_language import FusedLayer
from policy.acceleration.int8 import Int8Linear
from policy.acceleration.kernel_layer import View, added, kernel_layer, long_layer, short_layer
from policy.acceleration.rows import Rows, check_kernels
from policy.openvla.config import LanguageConfig
from policy.openvla.language_model import Layer, rotary_tables, taken

CUDA = torch.cuda.is_available()
# The interpreter has no bfloat16.
DEVICE, DTYPE, ROUNDING = (
    (torch.device("cuda"), torch.bfloat16, 2e-2) if CUDA else (torch.device("cpu"), torch.half, 3e-3)
)
CONFIG = LanguageConfig(vocabulary=64, width=96, layers=1, heads=3, key_value_heads=3, mlp=80, head_size=32)
SHARED = LanguageConfig(vocabulary=64, width=96, layers=1, heads=4, key_value_heads=2, mlp=80, head_size=32)
LENGTH = 40
Kind = Callable[[nn.Linear], nn.Module]
needs_kernel = pytest.mark.skipif(
    not CUDA and os.environ.get("TRITON_INTERPRET") != "1", reason="needs a GPU or TRITON_INTERPRET=1"
)
# Triton's interpreter rounds some numbers to half of the next power of two.
EIGHT_BITS = CUDA and torch.cuda.get_device_capability() >= CAPABILITY
needs_eight_bits = pytest.mark.skipif(not EIGHT_BITS, reason="needs a GPU with 8-bit products")


def layer_of(kind: Kind | None, config: LanguageConfig = CONFIG) -> FusedLayer:
    torch.manual_seed(1)
    plain = Layer(config)
    for norm in (plain.input_layernorm, plain.post_attention_layernorm):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    layer = FusedLayer(plain.to(DEVICE, DTYPE), own_kernels=True)
    for name, child in list(layer.named_children()):
        if kind is not None and isinstance(child, nn.Linear):
            setattr(layer, name, kind(child))
    return layer.eval()


def test_a_joined_layer_keeps_no_weight_twice() -> None:
    """Were gradients of the folded norms tracked, PyTorch would keep what the weights were before."""
    layer = layer_of(None)
    assert [name for name, weight in layer.named_parameters() if weight.grad_fn is not None] == []


def inputs(batch: int, tokens: int) -> tuple[Tensor, ...]:
    """A pass's numbers, rotary tables, slots without order, and a mask of any shape."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, tokens, CONFIG.width, generator=generator).to(DEVICE, DTYPE)
    cosine, sine = rotary_tables(torch.arange(tokens).expand(batch, -1) + 7, CONFIG.head_size, 1e4, DTYPE)
    slots = torch.stack([torch.randperm(LENGTH, generator=generator)[:tokens] for _ in range(batch)]).to(DEVICE)
    mask = torch.rand(batch, 1, tokens, LENGTH, generator=generator) < 0.5
    mask[..., 0] = True
    bias = torch.zeros(mask.shape).masked_fill(~mask, float("-inf")).to(DEVICE, DTYPE)
    return x, cosine.to(DEVICE), sine.to(DEVICE), slots, bias


def caches(batch: int, config: LanguageConfig) -> list[Tensor]:
    shape = (2, batch, config.key_value_heads, LENGTH, config.head_size)
    filled = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(DEVICE, DTYPE)
    return [filled, filled.clone()]


@needs_kernel
@pytest.mark.parametrize("kind", [None, Int8Linear])
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 14), (2, 5)], ids=str)
@torch.inference_mode()
def test_five_launches_are_a_layer(kind: Kind | None, batch: int, tokens: int) -> None:
    layer = layer_of(kind)
    x, cosine, sine, slots, bias = inputs(batch, tokens)
    found, want = caches(batch, CONFIG)
    rows = torch.arange(batch, device=DEVICE)[:, None]
    torch.testing.assert_close(
        short_layer(layer, x, View(cosine, sine, *found, slots, bias)),
        layer(x, cosine, sine, *want, rows, slots, bias),
        rtol=ROUNDING,
        atol=ROUNDING,
    )
    torch.testing.assert_close(found, want, rtol=ROUNDING, atol=ROUNDING)


@needs_kernel
@pytest.mark.parametrize("kind", [None, Int8Linear, pytest.param(Float8Linear, marks=needs_eight_bits)])
@pytest.mark.parametrize("config", [CONFIG, SHARED], ids=["heads alone", "shared keys"])
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 37), (2, 20)], ids=str)
@torch.inference_mode()
def test_a_long_pass_is_a_layer_and_leaves_a_sum_to_be_made(
    kind: Kind | None, config: LanguageConfig, batch: int, tokens: int
) -> None:
    """Two in a row, the second of which is asked for two tokens."""
    layer = layer_of(kind, config)
    x, cosine, sine, slots, bias = inputs(batch, tokens)
    found, want = caches(batch, config)
    rows, wanted = torch.arange(batch, device=DEVICE)[:, None], torch.tensor([[0, tokens - 1]] * batch, device=DEVICE)
    view = View(cosine, sine, *found, slots, bias)
    first = long_layer(layer, x, None, view)
    second = added(*long_layer(layer, *first, view, wanted))
    plain = layer(x, cosine, sine, *want, rows, slots, bias)
    # A number that rounds to the other of two 8-bit neighbours changes all outputs of its token.
    rounding = 0.1 if kind is Float8Linear else 2 * ROUNDING
    torch.testing.assert_close(added(*first), plain, rtol=rounding, atol=rounding)
    plain = taken(layer(plain, cosine, sine, *want, rows, slots, bias), wanted)
    assert second.shape == plain.shape
    torch.testing.assert_close(second, plain, rtol=rounding, atol=rounding)
    torch.testing.assert_close(found, want, rtol=rounding, atol=rounding)


@needs_kernel
@torch.inference_mode()
def test_passes_of_few_and_of_many_tokens_follow_each_other() -> None:
    layer = layer_of(None)
    for tokens in (16, 17):
        x, cosine, sine, slots, bias = inputs(1, tokens)
        found, want = caches(1, CONFIG)
        pending = Rows(torch.ones_like(x[0]))
        got, left = kernel_layer(layer, x, pending, View(cosine, sine, *found, slots, bias))
        assert (left is None) == (tokens == 16)
        plain = layer(x + 1, cosine, sine, *want, torch.zeros(1, 1, dtype=torch.long, device=DEVICE), slots, bias)
        torch.testing.assert_close(added(got, left), plain, rtol=2 * ROUNDING, atol=2 * ROUNDING)


@needs_kernel
def test_factors_that_a_product_left_are_applied() -> None:
    from policy.acceleration.row_kernels import add_and_norm, gate

    generator = torch.Generator().manual_seed(4)
    x, more = (torch.randn(5, 96, generator=generator).to(DEVICE, DTYPE) for _ in range(2))
    of_row, of_column = (torch.rand(count, generator=generator).to(DEVICE) + 0.5 for count in (5, 96))
    rows = Rows(more, of_row, of_column)
    total, normed = add_and_norm(x, rows, 1e-6, rounded=False)
    want = x + rows.multiplied(DTYPE)
    torch.testing.assert_close(total, want, rtol=ROUNDING, atol=ROUNDING)
    want = nn.functional.rms_norm(want.float(), (96,), eps=1e-6)
    torch.testing.assert_close(normed.multiplied(torch.float32), want, rtol=ROUNDING, atol=ROUNDING)
    first, second = rows.multiplied(torch.float32).chunk(2, dim=1)
    want = nn.functional.silu(first) * second
    torch.testing.assert_close(gate(rows, False).multiplied(torch.float32), want, rtol=ROUNDING, atol=ROUNDING)


@needs_eight_bits
def test_rows_are_rounded_as_pytorch_rounds_them() -> None:
    from policy.acceleration.row_kernels import add_and_norm, gate, round_rows

    x = torch.randn(20, 192, generator=torch.Generator().manual_seed(5)).to(DEVICE, DTYPE)
    x[3] = 0.0
    for found, exact in (
        (round_rows(x), x),
        (add_and_norm(x, None, 1e-6, True)[1], add_and_norm(x, None, 1e-6, False)[1].numbers),
        (gate(Rows(x), True), gate(Rows(x), False).numbers),
    ):
        numbers, scale = quantise_rows(exact)
        assert found.of_row is not None
        torch.testing.assert_close(found.of_row, scale[:, 0])
        assert (found.numbers.float() != numbers.float()).float().mean() < 1e-3, "one division may round otherwise"


@torch.inference_mode()
def test_eight_bit_rows_want_both_factors() -> None:
    torch.manual_seed(0)
    layer, x = Float8Linear(nn.Linear(64, 32, bias=False)), torch.randn(5, 64)
    numbers, of_row = quantise_rows(x)
    torch.testing.assert_close(layer.of_rows(Rows(numbers, of_row[:, 0])).multiplied(torch.float32), layer(x))


def test_kernels_refuse_what_they_cannot_run_on(monkeypatch) -> None:
    check_kernels(torch.device("cpu"))
    monkeypatch.setattr(own_rows, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="install the package triton, or use the kernels 'torch'"):
        check_kernels(torch.device("cuda"))
    monkeypatch.setattr(own_rows, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    with pytest.raises(ValueError, match=r"8\.0 or later .* and T4 has 7\.5; use the kernels 'torch'"):
        check_kernels(torch.device("cuda"))
