"""Widening: a larger network of copied features acts like the small one, on disk too, and has the layout it should."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor

from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.prompt_batch import PromptBatch
from policy.openvla.checkpoint import CheckpointError, expected_shapes, load_checkpoint, weight_files
from policy.openvla.config import ACTION_BINS, LanguageConfig, OpenVLAConfig, TowerConfig
from policy.openvla.model import OpenVLA
from policy.openvla.prompt import Prompter
from policy.runtime import Policy
from policy.training import widened_checkpoint
from policy.training.repeated_features import Axis
from policy.training.widen import OPENVLA_7B_SIZES, TargetSizes, Widening, widened
from policy.training.widened_checkpoint import widen_checkpoint
from policy.types import Observation

TWICE = TargetSizes(dinov2_width=256, siglip_width=144, text_width=192)
# Every factor and every surplus differs, so that a mix-up cannot fit by accident.
UNEVEN = TargetSizes(
    dinov2_width=256,
    dinov2_blocks=5,
    dinov2_mlp=401,
    siglip_width=216,
    siglip_blocks=2,
    siglip_mlp=90,
    text_width=480,
    text_layers=5,
    text_mlp=777,
    vocabulary=1000,
)
TARGETS = {
    "same": TargetSizes(),
    "twice": TWICE,
    "three times": TargetSizes(dinov2_width=384, siglip_width=216, text_width=288, text_mlp=480),
    "deeper": TargetSizes(dinov2_blocks=6, siglip_blocks=3, text_layers=7),
    "more ids": TargetSizes(vocabulary=32064),
    "uneven": UNEVEN,
}
PROMPT = [1, 7, 5, 6, 3]


def widen(model: OpenVLA, sizes: TargetSizes) -> tuple[OpenVLA, Widening]:
    widening = Widening(model.config, sizes.of(model.config))
    wide = OpenVLA.from_config(widening.target, device="meta", dtype=model.dtype)
    wide.load_state_dict(dict(widening.tensors(model.state_dict())), assign=True)
    return wide.eval().requires_grad_(False), widening


def moved_ids(widening: Widening) -> Tensor:
    """The wide network's id of each of the small one's."""
    return torch.tensor([widening.token_id(token) for token in range(widening.source.language.vocabulary)])


def pixels(count: int, seed: int) -> Tensor:
    return torch.randn(count, 6, 224, 224, generator=torch.Generator().manual_seed(seed))


def greedy(model: OpenVLA, images: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens `[B, 7]` and the logits `[B, 7, vocabulary]` they are the largest of."""
    prompts = PromptBatch.embed(model, [PROMPT] * len(images), model.image_features(images))
    steps = list(AutoregressiveDecoder(model).steps(prompts))
    return torch.stack([step.tokens for step in steps], 1), torch.stack([step.logits for step in steps], 1)


@pytest.mark.parametrize("sizes", TARGETS.values(), ids=TARGETS)
@torch.no_grad()
def test_wide_network_chooses_the_same_tokens_by_the_same_logits(small_model: OpenVLA, sizes: TargetSizes) -> None:
    wide, widening = widen(small_model, sizes)
    images = pixels(2, seed=4)
    tokens, logits = greedy(small_model, images)
    wide_tokens, wide_logits = greedy(wide, images)
    ids = moved_ids(widening)
    assert len(torch.unique(tokens)) > 2  # a network that always says the same would prove little
    assert torch.equal(wide_tokens, ids[tokens])
    torch.testing.assert_close(wide_logits[..., ids], logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_features_are_the_small_networks_again_and_again(small_model: OpenVLA) -> None:
    wide, _ = widen(small_model, UNEVEN)
    images = pixels(1, seed=5)
    small_dinov2, small_siglip = small_model.vision_backbone(images).split([128, 72], 2)
    expected = torch.cat([small_dinov2.tile(2), small_siglip.tile(3)], 2)
    torch.testing.assert_close(wide.vision_backbone(images), expected, atol=1e-4, rtol=0)
    expected = small_model.image_features(images).tile(5)
    torch.testing.assert_close(wide.image_features(images), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_layers_that_only_complete_the_layout_are_widened_too(small_model: OpenVLA) -> None:
    wide, _ = widen(small_model, UNEVEN)
    small_tower, wide_tower = small_model.vision_backbone.fused_featurizer, wide.vision_backbone.fused_featurizer
    x = torch.randn(1, 4, 72, generator=torch.Generator().manual_seed(6))
    for layer in ("norm", "attn_pool.norm", "attn_pool.q", "attn_pool.proj", "attn_pool.mlp.fc2"):
        small_layer, wide_layer = small_tower.get_submodule(layer), wide_tower.get_submodule(layer)
        inputs = x if layer != "attn_pool.mlp.fc2" else torch.randn(1, 4, 90)
        repeated = inputs if layer == "attn_pool.mlp.fc2" else inputs.tile(3)
        torch.testing.assert_close(wide_layer(repeated), small_layer(inputs).tile(3), atol=1e-5, rtol=0)
    keys, values = small_tower.attn_pool.kv(x).chunk(2, -1)
    torch.testing.assert_close(wide_tower.attn_pool.kv(x.tile(3)), torch.cat([keys.tile(3), values.tile(3)], -1))
    assert torch.equal(wide_tower.attn_pool.latent, small_tower.attn_pool.latent.tile(3))
    last, spare = small_tower.blocks[-1], wide_tower.blocks[-1]
    torch.testing.assert_close(spare(x.tile(3)), last(x).tile(3), atol=1e-4, rtol=0)


@torch.no_grad()
def test_rows_without_a_token_are_never_chosen(small_model: OpenVLA) -> None:
    """Not even where all logits are negative, so that a row of zeros would win."""
    widening = Widening(small_model.config, UNEVEN.of(small_model.config))
    ids = moved_ids(widening)
    generator = torch.Generator().manual_seed(7)
    shape = len(ids), 96
    for rows in (torch.randn(shape, generator=generator), torch.rand(shape, generator=generator)):
        head = widening.tensor("language_model.lm_head.weight", {"language_model.lm_head.weight": rows})
        hidden = torch.cat([torch.randn(500, 96, generator=generator), -torch.rand(500, 96, generator=generator)])
        assert torch.equal((hidden.tile(5) @ head.T).argmax(1), ids[(hidden @ rows.T).argmax(1)])


@torch.no_grad()
def test_bfloat16_costs_the_wide_network_no_more_than_the_small_one(small_model: OpenVLA) -> None:
    images = pixels(2, seed=8)
    rounded = OpenVLA.from_config(small_model.config, dtype=torch.bfloat16).eval()
    rounded.load_state_dict(small_model.state_dict())
    wide, widening = widen(rounded, UNEVEN)
    exact = OpenVLA.from_config(small_model.config).eval()
    exact.load_state_dict(rounded.state_dict())
    _, truth = greedy(exact, images)
    _, small_logits = greedy(rounded, images)
    _, wide_logits = greedy(wide, images)
    first = (slice(None), 0)  # later logits follow tokens that may differ by a near-tie
    allowed = 1.5 * (small_logits[first] - truth[first]).abs().mean()
    assert (wide_logits[..., moved_ids(widening)][first] - truth[first]).abs().mean() < allowed


def test_shape_of_the_7b_model_is_the_published_one() -> None:
    heads = {"heads": 2, "key_value_heads": 2}
    source = OpenVLAConfig(
        dinov2=TowerConfig("dinov2", width=256, blocks=7, mlp=704),
        siglip=TowerConfig("siglip", width=144, blocks=7, mlp=384),
        language=LanguageConfig(vocabulary=448, width=256, mlp=688, layers=6, **heads),
        pad_token_id=384,
    )
    target = OPENVLA_7B_SIZES.of(source)
    assert target == OpenVLAConfig()  # whose tensors are checked against the published list in test_config
    small = OpenVLA.from_config(source, device="meta").state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in Widening(source, target).tensors(small)}
    assert shapes == expected_shapes(OpenVLA.from_config(OpenVLAConfig(), device="meta"))
    assert [Widening(source, target).token_id(token) for token in (0, 127, 128, 383, 384)] == [
        0,
        127,
        32000 - ACTION_BINS,
        31999,
        32000,
    ]


@given(st.integers(1, 60), st.integers(0, 400))
def test_shares_of_copies_add_up_exactly(small: int, more: int) -> None:
    axis = Axis.cyclic(small, small + more)
    assert len(axis.origin) == small + more
    assert torch.equal(torch.zeros(small).index_add(0, axis.origin, axis.share), torch.ones(small))
    assert (torch.frexp(axis.share).mantissa == 0.5).all()  # powers of two, so that no weight is rounded


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (TargetSizes(dinov2_width=192), "dinov2_width must be a whole multiple of the small network's 128, got 192"),
        (TargetSizes(siglip_width=36), "siglip_width must be .* 72, got 36; give 72"),
        (TargetSizes(text_width=200), "text_width must be .* 96, got 200; give 192"),
        (TargetSizes(dinov2_blocks=1), "dinov2_blocks must be at least the small network's 2, got 1"),
        (TargetSizes(siglip_mlp=80), "siglip_mlp must be at least the small network's 90, got 80"),
        (TargetSizes(text_layers=0), "text_layers must be at least the small network's 2, got 0"),
        (TargetSizes(vocabulary=320), "vocabulary must be at least the small network's 384, got 320"),
    ],
)
def test_sizes_it_cannot_have_are_refused(small_config: OpenVLAConfig, sizes: TargetSizes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sizes.of(small_config)


def test_other_constants_are_refused(small_config: OpenVLAConfig) -> None:
    other = replace(small_config, language=replace(small_config.language, norm_epsilon=1e-5))
    with pytest.raises(ValueError, match=r"rms_norm_eps must stay .* 1e-06, got 1e-05; build the target by"):
        Widening(small_config, other)
    grouped = replace(small_config, language=replace(small_config.language, key_value_heads=4))
    with pytest.raises(ValueError, match="queries per key head must stay the small network's 2, got 1"):
        Widening(small_config, grouped)


def test_checkpoint_in_shards_is_loaded_and_acts_the_same(small_checkpoint: Path, tmp_path: Path) -> None:
    written: list[Path] = []
    widen_checkpoint(small_checkpoint, tmp_path / "wide", UNEVEN, torch.float32, 8_000_000, written.append)
    files = weight_files(tmp_path / "wide")
    assert [path.name for path in written] == [path.name for path in files]
    assert len(files) > 2
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]  # nothing is left of the unfinished one
    model = load_checkpoint(tmp_path / "wide", dtype=torch.float32)
    assert model.config == UNEVEN.of(load_checkpoint(small_checkpoint).config)
    small = Policy.load(small_checkpoint, device="cpu", dtype="float32")
    wide = Policy.load(tmp_path / "wide", device="cpu", dtype="float32")
    random = np.random.default_rng(9)
    for instruction in ("open the drawer", "pick up the milk and place it in the basket"):
        observation = Observation(random.integers(0, 256, (256, 256, 3), np.uint8), instruction)
        expected, found = small.act(observation), wide.act(observation)
        assert np.array_equal(found.values, expected.values)
        assert np.array_equal(found.tokens, expected.tokens + 1000 - 384)


def test_files_beside_the_weights_follow(small_checkpoint: Path, tmp_path: Path) -> None:
    widen_checkpoint(small_checkpoint, tmp_path / "wide", replace(TWICE, vocabulary=32064))
    assert [path.name for path in weight_files(tmp_path / "wide")] == ["model.safetensors"]
    with safe_open(tmp_path / "wide" / "model.safetensors", framework="pt") as tensors:
        assert tensors.get_slice("language_model.lm_head.weight").get_dtype() == "BF16"
    config = json.loads((tmp_path / "wide" / "config.json").read_text())
    assert (config["pad_token_id"], config["text_config"]["vocab_size"]) == (32000, 32064)
    assert config["norm_stats"] == json.loads((small_checkpoint / "config.json").read_text())["norm_stats"]
    generation = json.loads((tmp_path / "wide" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32000}
    before, after = Prompter(small_checkpoint), Prompter(tmp_path / "wide")
    assert after.token_ids("open the drawer") == before.token_ids("open the drawer")
    tokenizer = tmp_path / "wide" / "tokenizer.json"
    assert Tokenizer.from_file(str(tokenizer)).token_to_id("<PAD>") == 32000
    assert [token["id"] for token in json.loads(tokenizer.read_text())["added_tokens"]] == [0, 1, 2, 32000]
    card = (tmp_path / "wide" / "README.md").read_text()
    assert "This is not OpenVLA" in card
    assert "32064 rows" in card


def test_what_cannot_be_written_is_refused(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="is there already; choose a new directory"):
        widen_checkpoint(small_checkpoint, tmp_path, TWICE)
    with pytest.raises(ValueError, match="max_shard_bytes must be positive, got 0"):
        widen_checkpoint(small_checkpoint, tmp_path / "wide", TWICE, max_shard_bytes=0)
    other = Path(shutil.copytree(small_checkpoint, tmp_path / "other"))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(tokenizer | {"model": {"type": "BPE", "vocab": {}}}))
    with pytest.raises(CheckpointError, match=r"is a BPE tokenizer.*; keep the vocabulary of 384 rows"):
        widen_checkpoint(other, tmp_path / "wide", replace(TWICE, vocabulary=1000))
    full = SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=10**6))
    monkeypatch.setattr(widened_checkpoint, "shutil", full)
    with pytest.raises(CheckpointError, match=r"has 0\.0 GB free and the widened checkpoint takes .* GB"):
        widen_checkpoint(small_checkpoint, tmp_path / "wide", TWICE)
    assert not (tmp_path / "wide").exists()


@torch.inference_mode()
def test_a_wide_network_can_be_made_without_a_file(small_model: OpenVLA) -> None:
    sizes = TargetSizes(text_width=2 * small_model.config.language.width, text_layers=3)
    made, (expected, _) = widened(small_model, sizes), widen(small_model, sizes)
    assert made.config == expected.config
    assert not made.training
    for name, tensor in expected.state_dict().items():
        assert torch.equal(made.state_dict()[name], tensor), name
