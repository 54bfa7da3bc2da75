"""Sizes of an OpenVLA network, and their place in a published `config.json`.

Knows which sizes the file holds (the language model's), which follow from tensor shapes (the towers') and which are
fixed by the architecture (head sizes, patch grid). Knows nothing of weights, statistics or tokens' meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

IMAGE_SIDE = 224
PATCH_SIDE = 14
PATCHES = (IMAGE_SIDE // PATCH_SIDE) ** 2
ACTION_DIMENSIONS = 7
ACTION_BINS = 256

DINOV2_PREFIX = "vision_backbone.featurizer."
SIGLIP_PREFIX = "vision_backbone.fused_featurizer."

# The file never states head sizes: they are those of the published ViT-L/14 and So400m/14, at any width.
_TOWER_HEAD_SIZES = {"dinov2": 64, "siglip": 72}


@dataclass(frozen=True, slots=True)
class TowerConfig:
    """One vision tower.

    kind: "dinov2" (class token, four registers, LayerScale) or "siglip" (none of these; an unused pooling head).
    width: features per patch. blocks: blocks *stored*; the last of them is never computed. mlp: hidden features of the
    MLPs.
    """

    kind: Literal["dinov2", "siglip"]
    width: int
    blocks: int
    mlp: int

    def __post_init__(self) -> None:
        if self.width % self.head_size or self.width <= 0:
            raise ValueError(
                f"{self.kind} width must be a multiple of its head size {self.head_size}, got {self.width}"
            )
        if self.blocks < 2:
            raise ValueError(
                f"{self.kind} needs at least 2 blocks (the last is stored but not computed), got {self.blocks}"
            )

    @property
    def head_size(self) -> int:
        return _TOWER_HEAD_SIZES[self.kind]

    @property
    def heads(self) -> int:
        return self.width // self.head_size

    @property
    def registers(self) -> int:
        return 4 if self.kind == "dinov2" else 0


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    """The Llama part. Defaults are what a published OpenVLA file leaves out: transformers' `LlamaConfig` defaults.

    Note norm_epsilon 1e-6: Llama-2's own 1e-5 is not what OpenVLA's published checkpoints run with.
    vocabulary: rows of the embedding, padding rows included.
    """

    vocabulary: int = 32064
    width: int = 4096
    mlp: int = 11008
    layers: int = 32
    heads: int = 32
    key_value_heads: int = 32
    head_size: int = 128
    norm_epsilon: float = 1e-6
    rotary_base: float = 10000.0

    def __post_init__(self) -> None:
        if self.heads % self.key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.heads} is no multiple of num_key_value_heads {self.key_value_heads}"
            )
        if self.head_size % 2:
            raise ValueError(f"head size must be even for rotary positions, got {self.head_size}")
        if not 0 < self.norm_epsilon < 1e-2:
            raise ValueError(f"rms_norm_eps must lie in (0, 0.01), got {self.norm_epsilon}")

    @classmethod
    def from_json(cls, text_config: Mapping[str, Any]) -> LanguageConfig:
        """Read `text_config`, filling what it leaves out; refuses what this network does not compute."""
        _refuse_foreign_language_model(text_config)
        default = cls()
        width = text_config.get("hidden_size", default.width)
        heads = text_config.get("num_attention_heads", default.heads)
        # transformers 5 writes rope_parameters where version 4 wrote rope_theta.
        rotary = text_config.get("rope_parameters") or {}
        return cls(
            vocabulary=text_config.get("vocab_size", default.vocabulary),
            width=width,
            mlp=text_config.get("intermediate_size", default.mlp),
            layers=text_config.get("num_hidden_layers", default.layers),
            heads=heads,
            key_value_heads=text_config.get("num_key_value_heads") or heads,
            head_size=text_config.get("head_dim") or width // heads,
            norm_epsilon=text_config.get("rms_norm_eps", default.norm_epsilon),
            rotary_base=text_config.get("rope_theta", rotary.get("rope_theta", default.rotary_base)),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_size,
            "rms_norm_eps": self.norm_epsilon,
            "rope_theta": self.rotary_base,
        }


@dataclass(frozen=True, slots=True)
class OpenVLAConfig:
    """The whole network. Defaults are those of the published 7B model.

    pad_to_multiple_of: padding rows at the end of the vocabulary; action ids count down from `vocabulary -
    pad_to_multiple_of`.
    pad_token_id: id that fills ragged batches; never seen by attention. maximum_tokens: longest prompt in text tokens.
    """

    dinov2: TowerConfig = field(default_factory=lambda: TowerConfig("dinov2", width=1024, blocks=24, mlp=4096))
    siglip: TowerConfig = field(default_factory=lambda: TowerConfig("siglip", width=1152, blocks=27, mlp=4304))
    language: LanguageConfig = field(default_factory=LanguageConfig)
    pad_to_multiple_of: int = 64
    pad_token_id: int = 32000
    maximum_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.action_vocabulary < ACTION_BINS:
            raise ValueError(
                f"vocabulary {self.language.vocabulary} less {self.pad_to_multiple_of} padding rows "
                f"must hold {ACTION_BINS} action ids"
            )
        if not 0 <= self.pad_token_id < self.language.vocabulary:
            raise ValueError(
                f"pad_token_id must be below the vocabulary {self.language.vocabulary}, got {self.pad_token_id}"
            )

    @property
    def vision_width(self) -> int:
        return self.dinov2.width + self.siglip.width

    @property
    def projector_hidden(self) -> int:
        return 4 * self.vision_width

    @property
    def action_vocabulary(self) -> int:
        """Vocabulary without its padding rows: the id one above the highest action id (32000 for the 7B model)."""
        return self.language.vocabulary - self.pad_to_multiple_of

    @classmethod
    def from_json(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> OpenVLAConfig:
        """Read a published `config.json`; the towers' sizes come from `shapes`, the tensors' names and shapes.

        Raises ValueError for another architecture or when a tensor that tells a size is absent.
        """
        if config.get("model_type") != "openvla":
            raise ValueError(f"config.json: model_type must be 'openvla', found {config.get('model_type')!r}")
        if not config.get("use_fused_vision_backbone", True):
            backbone = config.get("vision_backbone_id", "unknown")
            raise ValueError(
                f"config.json: single-tower vision backbone {backbone!r} is not supported; "
                "use a checkpoint with 'dinosiglip-vit-so-224px' (openvla-7b and its fine-tunes)"
            )
        if (bins := config.get("n_action_bins", ACTION_BINS)) != ACTION_BINS:
            raise ValueError(f"config.json: n_action_bins is {bins}; only {ACTION_BINS} is supported")
        language = LanguageConfig.from_json(config.get("text_config") or {})
        pad_to_multiple_of = _given(config, "pad_to_multiple_of", 64)
        return cls(
            dinov2=_tower_from_shapes("dinov2", DINOV2_PREFIX, shapes),
            siglip=_tower_from_shapes("siglip", SIGLIP_PREFIX, shapes),
            language=language,
            pad_to_multiple_of=pad_to_multiple_of,
            pad_token_id=_given(config, "pad_token_id", language.vocabulary - pad_to_multiple_of),
            maximum_tokens=_given(config, "llm_max_length", 2048),
        )

    def to_json(self, dtype: str) -> dict[str, Any]:
        """The fields of a published `config.json`, without `norm_stats`. dtype: e.g. "bfloat16"."""
        text_config = self.language.to_json() | {"pad_token_id": self.pad_token_id, "torch_dtype": dtype}
        return {
            "architectures": ["OpenVLAForActionPrediction"],
            "model_type": "openvla",
            "vision_backbone_id": "dinosiglip-vit-so-224px",
            "llm_backbone_id": "llama2-7b-pure",
            "arch_specifier": "no-align+fused-gelu-mlp",
            "use_fused_vision_backbone": True,
            "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
            "timm_override_act_layers": [None, None],
            "image_sizes": [IMAGE_SIDE, IMAGE_SIDE],
            "image_resize_strategy": "resize-naive",
            "hf_llm_id": "meta-llama/Llama-2-7b-hf",
            "llm_max_length": self.maximum_tokens,
            "pad_token_id": self.pad_token_id,
            "pad_to_multiple_of": self.pad_to_multiple_of,
            "output_projector_states": False,
            "n_action_bins": ACTION_BINS,
            "text_config": text_config,
            "torch_dtype": dtype,
        }


def _given(config: Mapping[str, Any], name: str, default: int) -> int:
    """An entry, also where it is null. Raises ValueError for one that is no whole number."""
    value = default if config.get(name) is None else config[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"config.json: {name} must be a whole number or null, found {value!r}")
    return value


def _refuse_foreign_language_model(text_config: Mapping[str, Any]) -> None:
    """Raise for settings that change what a Llama computes and that OpenVLA never uses."""
    rotary = text_config.get("rope_parameters") or {}
    supported = {
        "model_type": (text_config.get("model_type", "llama"), ("llama",)),
        "hidden_act": (text_config.get("hidden_act", "silu"), ("silu",)),
        "attention_bias": (bool(text_config.get("attention_bias", False)), (False,)),
        "mlp_bias": (bool(text_config.get("mlp_bias", False)), (False,)),
        "tie_word_embeddings": (bool(text_config.get("tie_word_embeddings", False)), (False,)),
        "rope_scaling": (text_config.get("rope_scaling"), (None,)),
        "rope_parameters.rope_type": (rotary.get("rope_type", "default"), ("default",)),
    }
    for name, (found, valid) in supported.items():
        if found not in valid:
            raise ValueError(f"config.json: text_config.{name} is {found!r}; supported: {', '.join(map(repr, valid))}")


def _tower_from_shapes(
    kind: Literal["dinov2", "siglip"], prefix: str, shapes: Mapping[str, tuple[int, ...]]
) -> TowerConfig:
    block_prefix = prefix + "blocks."
    indices = {int(name.removeprefix(block_prefix).split(".")[0]) for name in shapes if name.startswith(block_prefix)}
    telling = {"width": prefix + "patch_embed.proj.weight", "mlp": block_prefix + "0.mlp.fc1.weight"}
    absent = [name for name in telling.values() if name not in shapes]
    if absent:
        examples = ", ".join(sorted(shapes)[:3]) or "no tensors at all"
        raise ValueError(
            f"tensors {', '.join(absent)} are missing, so the {kind} tower has no size; found e.g. {examples}"
        )
    width, mlp = (shapes[name][0] for name in telling.values())
    return TowerConfig(kind, width=width, blocks=max(indices) + 1, mlp=mlp)
