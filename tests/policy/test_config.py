"""The network's sizes: read from published files, written back, and refused where the network would compute something
else.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from policy.openvla.checkpoint import expected_shapes
from policy.openvla.config import LanguageConfig, OpenVLAConfig, TowerConfig
from policy.openvla.model import OpenVLA

# Over the sorted lines "name (shape)" of all tensors in the published openvla-7b.
PUBLISHED_LAYOUT = "e4865cf4865c1cccb9b15cf7caa69ca21bb8f4fe08850f6b7766a59f34f11577"


def published_json(**text_config: Any) -> dict[str, Any]:
    """What a published config.json says of sizes; all else is left to defaults."""
    return {"model_type": "openvla", "text_config": {"model_type": "llama", "vocab_size": 32064} | text_config}


def shapes_of(config: OpenVLAConfig) -> dict[str, tuple[int, ...]]:
    return expected_shapes(OpenVLA.from_config(config, device="meta"))


def test_default_sizes_are_the_published_layout() -> None:
    model = OpenVLA.from_config(OpenVLAConfig(), device="meta")
    shapes = expected_shapes(model)
    lines = "".join(f"{name} {shape}\n" for name, shape in sorted(shapes.items()))
    assert len(shapes) == 982
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_541_237_184
    assert hashlib.sha256(lines.encode()).hexdigest() == PUBLISHED_LAYOUT


def test_published_config_leaves_the_language_model_to_defaults() -> None:
    config = OpenVLAConfig.from_json(published_json(), shapes_of(OpenVLAConfig()))
    assert config == OpenVLAConfig()
    assert config.language.norm_epsilon == 1e-6
    assert config.action_vocabulary == 32000


def test_stated_fields_override_defaults() -> None:
    fields = {"rms_norm_eps": 1e-5, "rope_theta": 5e4, "num_attention_heads": 8, "hidden_size": 256}
    language = LanguageConfig.from_json(fields)
    assert (language.norm_epsilon, language.rotary_base) == (1e-5, 5e4)
    assert (language.heads, language.key_value_heads, language.head_size) == (8, 8, 32)
    assert LanguageConfig.from_json({"rope_parameters": {"rope_theta": 7.0}}).rotary_base == 7.0
    assert LanguageConfig.from_json({"num_key_value_heads": 4, "head_dim": 64}).key_value_heads == 4


def test_round_trip_through_json(small_config: OpenVLAConfig) -> None:
    assert OpenVLAConfig.from_json(small_config.to_json("bfloat16"), shapes_of(small_config)) == small_config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("tie_word_embeddings", True),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "yarn"}),
        ("model_type", "mistral"),
    ],
)
def test_another_language_model_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        OpenVLAConfig.from_json(published_json(**{field: value}), {})


def test_another_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="model_type must be 'openvla', found 'llava'"):
        OpenVLAConfig.from_json({"model_type": "llava"}, {})
    single = published_json() | {"use_fused_vision_backbone": False, "vision_backbone_id": "siglip-vit-so400m"}
    with pytest.raises(ValueError, match="siglip-vit-so400m"):
        OpenVLAConfig.from_json(single, {})


def test_entries_that_are_null_have_their_defaults() -> None:
    null = published_json() | {"pad_token_id": None, "llm_max_length": None, "pad_to_multiple_of": None}
    config = OpenVLAConfig.from_json(null, shapes_of(OpenVLAConfig()))
    assert (config.pad_token_id, config.maximum_tokens, config.pad_to_multiple_of) == (32000, 2048, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_action_bins": 128}, "n_action_bins is 128; only 256 is supported"),
        ({"llm_max_length": "2048"}, "llm_max_length must be a whole number or null, found '2048'"),
        ({"pad_token_id": 1.5}, "pad_token_id must be a whole number or null, found 1.5"),
    ],
)
def test_entries_that_cannot_be_right_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OpenVLAConfig.from_json(published_json() | change, shapes_of(OpenVLAConfig()))


def test_missing_tower_is_named() -> None:
    shapes = {name: shape for name, shape in shapes_of(OpenVLAConfig()).items() if "fused_featurizer" not in name}
    with pytest.raises(ValueError, match=r"fused_featurizer\.patch_embed\.proj\.weight.*siglip tower has no size"):
        OpenVLAConfig.from_json(published_json(), shapes)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of its head size 72, got 128"):
        TowerConfig("siglip", width=128, blocks=2, mlp=8)
    with pytest.raises(ValueError, match="at least 2 blocks"):
        TowerConfig("dinov2", width=64, blocks=1, mlp=8)
    with pytest.raises(ValueError, match="num_attention_heads 4 is no multiple"):
        LanguageConfig(heads=4, key_value_heads=3)
    with pytest.raises(ValueError, match="256 action ids"):
        OpenVLAConfig(language=LanguageConfig(vocabulary=300), pad_token_id=10)
    with pytest.raises(ValueError, match="pad_token_id must be below the vocabulary 32064"):
        OpenVLAConfig(pad_token_id=32064)
