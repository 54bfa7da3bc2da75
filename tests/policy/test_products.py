"""Matrix products of our own give what PyTorch's do, at all sizes.

Without a GPU, the kernel is run by Triton's interpreter where Triton is installed and asked for it:
`TRITON_INTERPRET=1 pytest tests/policy/test_products.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from policy.acceleration.int8 import Int8Linear, quantise_rows

CUDA = torch.cuda.is_available()
# The interpreter has no bfloat16.
DEVICE, DTYPE = (torch.device("cuda"), torch.bfloat16) if CUDA else (torch.device("cpu"), torch.float16)
ROUNDING = 4e-3 if CUDA else 4e-4


Multiply = Callable[..., Tensor]


@pytest.fixture
def multiply() -> Multiply:
    pytest.importorskip("triton")
    if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a GPU or TRITON_INTERPRET=1")
    from policy.acceleration.product_kernel import multiply

    return multiply


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, DTYPE)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    ("rows", "outputs", "columns"),
    [(1, 64, 256), (14, 80, 344), (16, 96, 688), (7, 40, 64), (16, 8200, 112)],
    ids=str,
)
def test_products_of_all_sizes(multiply: Multiply, rows: int, outputs: int, columns: int) -> None:
    """Also where rows, outputs and columns fill no tile, and more rows are refused."""
    with pytest.raises(ValueError, match="up to 16 rows, got 17"):
        multiply(numbers(17, columns), numbers(outputs, columns))
    x, weight = numbers(rows, columns), numbers(outputs, columns)
    assert error(multiply(x, weight, None), x.double() @ weight.double().t()) < ROUNDING
    whole, scale = quantise_rows(weight)
    exact = x.double() @ (whole.double() * scale[:, None]).t()
    assert error(multiply(x, whole, scale), exact) < ROUNDING


@pytest.mark.parametrize(("rows", "outputs", "columns"), [(1, 48, 256), (14, 40, 344), (16, 96, 64)], ids=str)
def test_norms_gates_and_residuals_are_part_of_a_product(
    multiply: Multiply, rows: int, outputs: int, columns: int
) -> None:
    x, weight, residual = numbers(rows, columns), numbers(2 * outputs, columns) / 8, numbers(rows, outputs)
    normed = x.double() * torch.rsqrt(x.double().square().mean(1, keepdim=True) + 0.5)
    product = normed @ weight.double().t()
    assert error(multiply(x, weight, None, epsilon=0.5), product) < ROUNDING
    gates, values = product.chunk(2, dim=1)
    gated = functional.silu(gates) * values
    assert error(multiply(x, weight, None, epsilon=0.5, gated=True), gated) < 3 * ROUNDING
    assert error(multiply(x, weight, None, epsilon=0.5, gated=True, residual=residual), gated + residual) < 3 * ROUNDING
    plain = x.double() @ weight[:outputs].double().t()
    assert error(multiply(x, weight[:outputs], residual=residual), plain + residual) < ROUNDING
    whole, scale = quantise_rows(weight)
    exact = (normed @ (whole.double() * scale[:, None]).t()).chunk(2, dim=1)
    gated = functional.silu(exact[0]) * exact[1]
    assert error(multiply(x, whole, scale, epsilon=0.5, gated=True), gated) < 3 * ROUNDING


def test_rows_may_lie_apart_and_do_not_touch_each_other(multiply: Multiply) -> None:
    spread, weight = numbers(14, 2, 256), numbers(64, 256)
    alone = multiply(spread[:, 1].contiguous(), weight, None)
    assert torch.equal(multiply(spread[:, 1], weight, None), alone)
    spread[3:] = float("nan")
    assert torch.equal(multiply(spread[:, 1], weight, None)[:3], alone[:3])


def test_rounding_to_whole_numbers_is_off_by_half_a_step_at_most() -> None:
    x = torch.tensor([[127.0, -1.0, 0.4, 63.6], [0.001, 0.002, -0.004, 0.0], [0.0, 0.0, 0.0, 0.0]])
    whole, scale = quantise_rows(x)
    assert whole[0].tolist() == [127, -1, 0, 64]
    assert whole[2].tolist() == [0] * 4
    assert ((whole * scale[:, None] - x).abs() <= scale[:, None] / 2).all()


@torch.inference_mode()
def test_a_layer_of_whole_numbers_is_near_the_plain_one() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(256, 96, bias=False)
    for shape in ((1, 1, 256), (2, 20, 256)):
        x = torch.randn(shape)
        found = Int8Linear(layer)(x)
        assert found.shape == layer(x).shape
        assert 1e-4 < error(found, layer(x).double()) < 0.02


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@torch.inference_mode()
def test_products_in_a_graph_on_a_gpu(multiply: Multiply) -> None:
    """Replayed with other inputs; twice the same numbers to the last bit."""
    weight, x = numbers(1024, 4096) / 64, numbers(14, 4096)
    multiply(x, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = multiply(x, weight)
    x.normal_()
    graph.replay()
    first = y.clone()
    graph.replay()
    assert torch.equal(first, y)
    assert error(y, x.double() @ weight.double().t()) < 0.02
