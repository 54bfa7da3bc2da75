"""A layer in five launches gives what the plain one does, and leaves the cache as it does.

Without a GPU, the kernels are run by Triton's interpreter where Triton is installed and asked for it:
`TRITON_INTERPRET=1 pytest tests/policy/test_short_layer.py`.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

from policy.acceleration.fused_language import FusedLayer
from policy.acceleration.int8 import Int8Linear
from policy.acceleration.products import SkinnyLinear
from policy.openvla.config import LanguageConfig
from policy.openvla.language_model import Layer, rotary_tables

CUDA = torch.cuda.is_available()
# The interpreter has no bfloat16.
DEVICE, DTYPE, ROUNDING = (
    (torch.device("cuda"), torch.bfloat16, 2e-2) if CUDA else (torch.device("cpu"), torch.half, 3e-3)
)
CONFIG = LanguageConfig(vocabulary=64, width=96, layers=1, heads=3, key_value_heads=3, mlp=80, head_size=32)
LENGTH = 40

pytestmark = pytest.mark.skipif(
    not CUDA and os.environ.get("TRITON_INTERPRET") != "1", reason="needs a GPU or TRITON_INTERPRET=1"
)


def layer_of(kind: type[SkinnyLinear | Int8Linear]) -> FusedLayer:
    torch.manual_seed(1)
    plain = Layer(CONFIG)
    for norm in (plain.input_layernorm, plain.post_attention_layernorm):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    layer = FusedLayer(plain.to(DEVICE, DTYPE), own_kernels=True)
    for name, child in list(layer.named_children()):
        if isinstance(child, nn.Linear):
            setattr(layer, name, kind(child))
    return layer.eval()


def inputs(batch: int, tokens: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, tokens, CONFIG.width, generator=generator).to(DEVICE, DTYPE)
    cosine, sine = rotary_tables(torch.arange(tokens).expand(batch, -1) + 7, CONFIG.head_size, 1e4, DTYPE)
    slots = torch.stack([torch.randperm(LENGTH, generator=generator)[:tokens] for _ in range(batch)]).to(DEVICE)
    mask = torch.rand(batch, 1, tokens, LENGTH, generator=generator) < 0.5
    mask[..., 0] = True
    bias = torch.zeros(mask.shape).masked_fill(~mask, float("-inf")).to(DEVICE, DTYPE)
    return x, cosine.to(DEVICE), sine.to(DEVICE), slots, bias


@pytest.mark.parametrize("kind", [SkinnyLinear, Int8Linear])
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 14), (2, 5)], ids=str)
@torch.inference_mode()
def test_five_launches_are_a_layer(kind: type[SkinnyLinear | Int8Linear], batch: int, tokens: int) -> None:
    layer = layer_of(kind)
    x, cosine, sine, slots, bias = inputs(batch, tokens)
    caches = [torch.zeros(2, batch, 3, LENGTH, 32, device=DEVICE, dtype=DTYPE) for _ in range(2)]
    for cache in caches:
        cache.copy_(torch.randn(cache.shape, generator=torch.Generator().manual_seed(3)))
    found = layer._short(x, cosine, sine, *caches[0], slots, bias)

    rows = torch.arange(batch, device=DEVICE)[:, None]
    attended = layer._attend(layer.qkv(layer.input_layernorm(x)), cosine, sine, *caches[1], rows, slots, bias)
    want = x + layer.o_proj(attended)
    gate, up = layer.gate_up(layer.post_attention_layernorm(want)).chunk(2, dim=-1)
    want = want + layer.down_proj(nn.functional.silu(gate) * up)
    torch.testing.assert_close(found, want, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(caches[0], caches[1], rtol=ROUNDING, atol=ROUNDING)
