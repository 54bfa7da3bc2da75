"""The network against independent implementations: torch's encoder layer for the towers, transformers' Llama for the
rest.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from policy.openvla.config import PATCHES, OpenVLAConfig
from policy.openvla.model import OpenVLA
from policy.openvla.vision import Block, Tower


def positions_of(batch: int, length: int) -> Tensor:
    return torch.arange(length).expand(batch, -1)


def torch_encoder_layer(block: Block, heads: int) -> nn.TransformerEncoderLayer:
    """The same block as torch has it; it knows no LayerScale, so the scales go into the layers before them."""
    width, mlp = block.norm1.weight.shape[0], block.mlp.fc1.weight.shape[0]
    layer = nn.TransformerEncoderLayer(
        width, heads, mlp, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    scale1, scale2 = (getattr(scale, "scale_factor", torch.ones(width)) for scale in (block.ls1, block.ls2))
    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": block.attn.qkv.weight,
            "self_attn.in_proj_bias": block.attn.qkv.bias,
            "self_attn.out_proj.weight": scale1[:, None] * block.attn.proj.weight,
            "self_attn.out_proj.bias": scale1 * block.attn.proj.bias,
            "linear1.weight": block.mlp.fc1.weight,
            "linear1.bias": block.mlp.fc1.bias,
            "linear2.weight": scale2[:, None] * block.mlp.fc2.weight,
            "linear2.bias": scale2 * block.mlp.fc2.bias,
            "norm1.weight": block.norm1.weight,
            "norm1.bias": block.norm1.bias,
            "norm2.weight": block.norm2.weight,
            "norm2.bias": block.norm2.bias,
        }
    )
    return layer.train()  # torch's fused inference path would round differently


def reference_tower(tower: Tower, heads: int, pixels: Tensor) -> Tensor:
    """Patches by unfolding instead of a convolution, all blocks but the last by torch's own layer."""
    patches = pixels.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    embedding = tower.patch_embed.proj
    assert embedding.bias is not None
    x = patches @ embedding.weight.flatten(1).T + embedding.bias + tower.pos_embed
    prefix = tower.prefix_tokens
    if prefix:
        x = torch.cat([torch.cat([tower.cls_token, tower.reg_token], 1).repeat(len(x), 1, 1), x], 1)
    for block in tower.blocks[:-1]:
        assert isinstance(block, Block)
        x = torch_encoder_layer(block, heads)(x)
    return x[:, prefix:]


@torch.no_grad()
def test_towers_and_projector_match_torch(small_model: OpenVLA) -> None:
    pixels = torch.randn(2, 6, 224, 224, generator=torch.Generator().manual_seed(1))
    backbone, config = small_model.vision_backbone, small_model.config
    dinov2 = reference_tower(backbone.featurizer, config.dinov2.heads, pixels[:, :3])
    siglip = reference_tower(backbone.fused_featurizer, config.siglip.heads, pixels[:, 3:])
    torch.testing.assert_close(backbone.featurizer(pixels[:, :3]), dinov2, atol=1e-4, rtol=0)
    torch.testing.assert_close(backbone.fused_featurizer(pixels[:, 3:]), siglip, atol=1e-4, rtol=0)
    projector = small_model.projector
    projection = nn.Sequential(projector.fc1, nn.GELU(), projector.fc2, nn.GELU(), projector.fc3)
    expected = projection(torch.cat([dinov2, siglip], 2))
    torch.testing.assert_close(small_model.image_features(pixels), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_language_model_matches_transformers(small_model: OpenVLA, small_config: OpenVLAConfig) -> None:
    fields = {**small_config.language.to_json(), "pad_token_id": None, "max_position_embeddings": 2048}
    reference = LlamaForCausalLM(LlamaConfig(**fields)).eval()
    reference.load_state_dict(small_model.language_model.state_dict())
    token_ids = torch.randint(small_config.language.vocabulary, (2, 40), generator=torch.Generator().manual_seed(2))
    embeddings = small_model.language_model.model.embed_tokens(token_ids)
    hidden = small_model.language_model(embeddings, positions_of(2, 40))
    torch.testing.assert_close(small_model.logits(hidden), reference(token_ids).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_patches_go_behind_the_first_token(small_model: OpenVLA) -> None:
    token_ids = torch.tensor([[1, 5, 6], [1, 7, 3]])
    features = torch.randn(2, PATCHES, small_model.config.language.width)
    spliced = small_model.embed(token_ids, features)
    text = small_model.language_model.model.embed_tokens(token_ids)
    assert torch.equal(spliced[:, 0], text[:, 0])
    assert torch.equal(spliced[:, 1:-2], features)
    assert torch.equal(spliced[:, -2:], text[:, 1:])


@torch.no_grad()
def test_own_mask_replaces_the_causal_one(small_model: OpenVLA) -> None:
    embeddings = torch.randn(1, 6, small_model.config.language.width)
    causal = small_model.language_model(embeddings, positions_of(1, 6))
    same = small_model.language_model(embeddings, positions_of(1, 6), mask=torch.ones(6, 6, dtype=torch.bool).tril())
    full = small_model.language_model(embeddings, positions_of(1, 6), mask=torch.ones(6, 6, dtype=torch.bool))
    torch.testing.assert_close(same, causal, atol=1e-5, rtol=0)
    assert (full[:, 0] - causal[:, 0]).abs().max() > 1e-2


def test_training_step_lowers_the_loss(small_config: OpenVLAConfig) -> None:
    torch.manual_seed(3)
    model = OpenVLA.from_config(small_config)
    pixels, token_ids = torch.randn(2, 6, 224, 224), torch.randint(3, 200, (2, 12))
    computed = [parameter for name, parameter in model.named_parameters() if not is_spare(name, small_config)]
    optimizer = torch.optim.AdamW(computed, lr=1e-3)
    losses = []
    for _ in range(4):
        logits = model.logits(model(pixels, token_ids)[:, -8:-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), token_ids[:, -7:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(parameter.grad is not None for parameter in computed)
    assert all(p.grad is None for name, p in model.named_parameters() if is_spare(name, small_config))


def test_one_graph_holds_the_whole_training_pass(small_model: OpenVLA) -> None:
    """Nothing breaks the graph for torch.compile, so that a compiled training step is one piece."""
    compiled = torch.compile(small_model, backend="eager", fullgraph=True)
    pixels, token_ids = torch.randn(1, 6, 224, 224), torch.tensor([[1, 5, 6, 3]])
    torch.testing.assert_close(compiled(pixels, token_ids), small_model(pixels, token_ids), atol=1e-4, rtol=0)


def is_spare(name: str, config: OpenVLAConfig) -> bool:
    """Whether a tensor only completes the published layout."""
    last = {"featurizer": config.dinov2.blocks - 1, "fused_featurizer": config.siglip.blocks - 1}
    prefixes = [
        f"vision_backbone.{tower}.{part}"
        for tower, block in last.items()
        for part in (f"blocks.{block}.", "norm.", "attn_pool.")
    ]
    return name.startswith(tuple(prefixes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_dtype_is_kept_and_logits_are_float32(small_config: OpenVLAConfig, dtype: torch.dtype) -> None:
    model = OpenVLA.from_config(small_config, dtype=dtype)
    hidden = model(torch.zeros(1, 6, 224, 224), torch.tensor([[1, 4, 3]]))
    assert hidden.dtype == dtype
    assert hidden.shape == (1, 3 + PATCHES, small_config.language.width)
    assert model.logits(hidden).dtype == torch.float32
    assert torch.isfinite(hidden).all()
