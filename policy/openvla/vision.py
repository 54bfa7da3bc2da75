"""The two vision towers, with parameters named as published.

Knows how pixels become patch features. Each tower stores more than it computes: the features are the output of the
second-to-last block, without the final norm, so the last block, the final norm and SigLIP's pooling head only keep a
saved checkpoint complete.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from policy.openvla.config import PATCH_SIDE, PATCHES, OpenVLAConfig, TowerConfig

LAYER_NORM_EPSILON = 1e-6


def patch_rows(pixels: Tensor) -> Tensor:
    """Pixels `[B, 3, H, W]` patch by patch, row by row: `[B, patches, 3 * 14 * 14]`, as a convolution's weights lie."""
    batch, channels, height, width = pixels.shape
    rows, columns = height // PATCH_SIDE, width // PATCH_SIDE
    patches = pixels.reshape(batch, channels, rows, PATCH_SIDE, columns, PATCH_SIDE)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)


class PatchEmbedding(nn.Module):
    """as_product: a matrix product instead of the convolution that it equals up to rounding, for training: a step of
    512 pictures on an H200 takes 71 instead of 77 ms.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=PATCH_SIDE, stride=PATCH_SIDE)
        self.as_product = False

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels `[B, 3, H, W]` to `[B, patches, width]`, patches row by row."""
        if self.as_product:
            return functional.linear(patch_rows(pixels), self.proj.weight.flatten(1), self.proj.bias)
        return self.proj(pixels).flatten(2).transpose(1, 2)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, tokens, head size]
        attended = functional.scaled_dot_product_attention(queries, keys, values)
        return self.proj(attended.transpose(1, 2).reshape(batch, tokens, width))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))  # exact (erf) GELU in both towers; the tanh form is off by 2e-3


class LayerScale(nn.Module):
    """Per-feature factor on a residual branch (Touvron et al. 2021, "Going deeper with image transformers", section
    2).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class Block(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        scaled = config.kind == "dinov2"
        self.norm1 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPSILON)
        self.attn = SelfAttention(config.width, config.heads)
        self.ls1 = LayerScale(config.width) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPSILON)
        self.mlp = MLP(config.width, config.mlp)
        self.ls2 = LayerScale(config.width) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class AttentionPool(nn.Module):
    """Parameters of SigLIP's pooling head. OpenVLA reads patches, not the pooled vector, so there is no forward."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.mlp = MLP(width, hidden)


class Tower(nn.Module):
    """One vision transformer: pixels `[B, 3, 224, 224]` (normalised) to patch features `[B, 256, width]`."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.prefix_tokens = 0
        if config.kind == "dinov2":
            self.prefix_tokens = 1 + config.registers
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
            self.reg_token = nn.Parameter(torch.zeros(1, config.registers, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, PATCHES, config.width))
        self.patch_embed = PatchEmbedding(config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPSILON)
        if config.kind == "siglip":
            self.attn_pool = AttentionPool(config.width, config.mlp)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pixels) + self.pos_embed  # positions on patches only
        if self.prefix_tokens:
            prefix = torch.cat([self.cls_token, self.reg_token], dim=1).expand(len(x), -1, -1)
            x = torch.cat([prefix, x], dim=1)
        for block in self.blocks[:-1]:
            x = block(x)
        return x[:, self.prefix_tokens :]


class VisionBackbone(nn.Module):
    """Both towers side by side: `[B, 6, 224, 224]` to `[B, 256, DINOv2 width + SigLIP width]`."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        self.featurizer = Tower(config.dinov2)
        self.fused_featurizer = Tower(config.siglip)

    def forward(self, pixel_values: Tensor) -> Tensor:
        dinov2, siglip = pixel_values.split(3, dim=1)
        return torch.cat([self.featurizer(dinov2), self.fused_featurizer(siglip)], dim=2)
