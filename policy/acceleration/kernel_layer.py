"""A layer of the language model by kernels of our own around, or in place of, the libraries' matrix products.

Knows the order of a Llama layer's steps. Knows nothing of the kernels' inside, which need Triton, so they are imported
where they run.

A pass of few tokens takes as long as the layer's weights take to be read, if nothing interrupts the reading: it is
five launches, in which norms, SiLU and residuals are parts of the products next to them. In longer passes the
libraries' products are faster than ours, and what lies between two of them is one launch each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from torch import Tensor, nn
from torch.nn import functional

from policy.acceleration.float8 import Float8Linear
from policy.acceleration.int8 import Int8Linear
from policy.acceleration.rows import SHORT, Rows
from policy.openvla.language_model import taken

if TYPE_CHECKING:
    from policy.acceleration.fused_language import FusedLayer


class View(NamedTuple):
    """A layer's part of the cache, and where in it a pass's tokens are: as for `FusedLayer.forward`, and contiguous but
    for the cache and the bias.
    """

    cosine: Tensor
    sine: Tensor
    keys: Tensor
    values: Tensor
    slots: Tensor
    bias: Tensor


def kernel_layer(
    layer: FusedLayer, x: Tensor, pending: Rows | None, view: View, wanted: Tensor | None = None
) -> tuple[Tensor, Rows | None]:
    """Inputs `[B, S, width]`, to which `pending` is still to be added, to outputs of that kind; writes to the cache.

    wanted: see `FusedLayer.forward`.
    """
    rounded = isinstance(layer.qkv, Float8Linear)
    if not rounded and x.shape[0] * x.shape[1] <= SHORT:
        x = short_layer(layer, added(x, pending), view)
        return (x if wanted is None else taken(x, wanted)), None
    return long_layer(layer, x, pending, view, wanted)


def short_layer(layer: FusedLayer, x: Tensor, view: View) -> Tensor:
    """Outputs `[B, S, width]` of inputs `[B, S, width]` in five launches."""
    from policy.acceleration.attention_kernel import attend_with_new
    from policy.acceleration.product_kernel import multiply

    rows, epsilon = x.contiguous().flatten(0, 1), layer.input_layernorm.epsilon
    qkv = Rows(multiply(rows, *_weight(layer.qkv), epsilon=epsilon))
    attended = attend_with_new(qkv, *view)
    rows = multiply(attended.flatten(0, 1), *_weight(layer.o_proj), residual=rows)
    gated = multiply(rows, *_weight(layer.gate_up), epsilon=epsilon, gated=True)
    return multiply(gated, *_weight(layer.down_proj), residual=rows).view_as(x)


def long_layer(
    layer: FusedLayer, x: Tensor, pending: Rows | None, view: View, wanted: Tensor | None = None
) -> tuple[Tensor, Rows]:
    """As `kernel_layer`, for passes of any length; what the last product gives is left to be added."""
    from policy.acceleration.attention_kernel import attend_with_new
    from policy.acceleration.row_kernels import add_and_norm, gate, round_rows, turn_and_store

    rounded, epsilon, batch = isinstance(layer.qkv, Float8Linear), layer.input_layernorm.epsilon, x.shape[0]
    rows, normed = add_and_norm(x.flatten(0, 1), pending, epsilon, rounded)
    qkv = _product(layer.qkv, normed)
    if len(rows) <= SHORT:
        attended = attend_with_new(qkv, *view)
    else:
        queries = turn_and_store(qkv, *view[:-1], x.dtype)
        attended = functional.scaled_dot_product_attention(
            queries, view.keys, view.values, attn_mask=view.bias, enable_gqa=layer.grouped
        )
        attended = attended.transpose(1, 2).flatten(2)
    if wanted is not None:
        attended, rows = taken(attended, wanted), taken(rows.view_as(x), wanted).flatten(0, 1)
    attended = attended.flatten(0, 1)
    output = _product(layer.o_proj, round_rows(attended) if rounded else Rows(attended))
    rows, normed = add_and_norm(rows, output, epsilon, rounded)
    gated = gate(_product(layer.gate_up, normed), rounded)
    return rows.unflatten(0, (batch, -1)), _product(layer.down_proj, gated)


def added(x: Tensor, pending: Rows | None) -> Tensor:
    """Numbers `[B, S, width]` after what is still to be added to them."""
    return x if pending is None else x + pending.multiplied(x.dtype).view_as(x)


def _product(layer: nn.Module, x: Rows) -> Rows:
    return layer.of_rows(x) if isinstance(layer, Float8Linear) else Rows(layer(x.numbers))


def _weight(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    return cast(Tensor, layer.weight), layer.scale if isinstance(layer, Int8Linear) else None
