"""Function-preserving widening: a small OpenVLA's weights become those of a larger one that computes the same.

Knows which feature of the small network each feature of the wide one copies, tensor by tensor. Knows nothing of files.

The scheme is Net2WiderNet's (Chen et al. 2016, arXiv 1511.05641, section 2.2) for transformers: features are copied,
and what reads them gives each copy a share of the small network's weight. Every feature of a residual stream is
repeated equally often, so the means and variances that LayerNorm and RMSNorm divide by stay what they are; attention
heads are repeated whole, so their size and with it the scale of attention stays; added blocks add zeros to the stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from policy.openvla.checkpoint import expected_shapes
from policy.openvla.config import (
    ACTION_BINS,
    DINOV2_PREFIX,
    SIGLIP_PREFIX,
    LanguageConfig,
    OpenVLAConfig,
    TowerConfig,
)
from policy.openvla.model import OpenVLA
from policy.training.repeated_features import Axis, Sides, joined

_LANGUAGE_PREFIX = "language_model."
_PROJECTOR_PREFIX = "projector."
_BLOCK = re.compile(r"(blocks|layers)\.(\d+)\.")
_PARAMETER = re.compile(r"\.(weight|bias|scale_factor)$")
# What a block adds to the residual stream goes through these.
_BLOCK_OUTPUTS = ("attn.proj", "mlp.fc2", "model.self_attn.o_proj", "model.mlp.down_proj")


@dataclass(frozen=True, slots=True)
class TargetSizes:
    """Sizes of the wide network; None leaves one as it is. Widths must be whole multiples of the small network's.

    `*_blocks` counts the blocks that are computed. Head sizes stay, so heads are repeated as often as features.
    """

    dinov2_width: int | None = None
    dinov2_blocks: int | None = None
    dinov2_mlp: int | None = None
    siglip_width: int | None = None
    siglip_blocks: int | None = None
    siglip_mlp: int | None = None
    text_width: int | None = None
    text_layers: int | None = None
    text_mlp: int | None = None
    vocabulary: int | None = None

    def of(self, source: OpenVLAConfig) -> OpenVLAConfig:
        """The configuration of `source` at these sizes. Raises ValueError for sizes it cannot be widened to."""
        text = source.language
        width = _given(self.text_width, text.width)
        factor = _whole_factor("text_width", text.width, width)
        vocabulary = _given(self.vocabulary, text.vocabulary)
        language = replace(
            text,
            vocabulary=vocabulary,
            width=width,
            mlp=_given(self.text_mlp, text.mlp),
            layers=_given(self.text_layers, text.layers),
            heads=factor * text.heads,
            key_value_heads=factor * text.key_value_heads,
        )
        target = replace(
            source,
            dinov2=_tower_of(source.dinov2, self.dinov2_width, self.dinov2_blocks, self.dinov2_mlp),
            siglip=_tower_of(source.siglip, self.siglip_width, self.siglip_blocks, self.siglip_mlp),
            language=language,
            pad_token_id=moved_token_id(source.pad_token_id, source, vocabulary),
        )
        _check(source, target)
        return target


OPENVLA_7B_SIZES = TargetSizes(
    dinov2_width=1024,
    dinov2_blocks=23,
    dinov2_mlp=4096,
    siglip_width=1152,
    siglip_blocks=26,
    siglip_mlp=4304,
    text_width=4096,
    text_layers=32,
    text_mlp=11008,
    vocabulary=32064,
)


def moved_token_id(token_id: int, source: OpenVLAConfig, vocabulary: int) -> int:
    """Where a token of the small network has its row among `vocabulary` rows: words keep their ids, the action ids and
    the padding rows behind them stay at the end.
    """
    return token_id if token_id < _first_action_id(source) else token_id + vocabulary - source.language.vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One of the network's parts: its layers by name (block numbers left out), and how many blocks compute."""

    layers: Mapping[str, Sides]
    small_blocks: int = 0
    wide_blocks: int = 0

    def origin_of(self, block: int) -> int:
        """The small network's block that a wide one is made from."""
        # Behind those that compute, a tower's layout stores one more block.
        return self.small_blocks if block == self.wide_blocks else block % self.small_blocks

    def adds_nothing(self, block: int) -> bool:
        return self.small_blocks <= block < self.wide_blocks


class Widening:
    """From the tensors of a network with configuration `source` to those of one with `target`.

    Tensors keep their device and dtype; on the device "meta" only shapes are computed. Logits of all ids the small
    network has stay the same (under `token_id`). Rows of the vocabulary that only the wide one has are the mean of the
    small one's words: their logit is the mean of the words' logits, which is nowhere above the largest, so they are
    never chosen whatever the hidden state. Probabilities over the whole vocabulary do change: these rows have some.

    Raises ValueError when `target` has a part smaller than in `source`, a stream that is no whole multiple, or other
    constants.
    """

    def __init__(self, source: OpenVLAConfig, target: OpenVLAConfig) -> None:
        _check(source, target)
        self.source, self.target = source, target
        self.shapes = expected_shapes(OpenVLA.from_config(target, device="meta"))
        self._parts = {
            DINOV2_PREFIX: _tower_part(source.dinov2, target.dinov2),
            SIGLIP_PREFIX: _tower_part(source.siglip, target.siglip),
            _PROJECTOR_PREFIX: _projector_part(source, target),
            _LANGUAGE_PREFIX: _language_part(source.language, target.language, self._vocabulary_axis()),
        }

    def token_id(self, token_id: int) -> int:
        """The wide network's id of the small one's."""
        return moved_token_id(token_id, self.source, self.target.language.vocabulary)

    def tensors(self, small: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """All tensors of the wide network by name, made one by one from the small one's."""
        for name in self.shapes:
            yield name, self.tensor(name, small)

    def tensor(self, name: str, small: Mapping[str, Tensor]) -> Tensor:
        """The wide network's tensor `name`, made from the small one's tensors."""
        prefix = next(prefix for prefix in self._parts if name.startswith(prefix))
        part, inside = self._parts[prefix], name.removeprefix(prefix)
        origin, adds_nothing = inside, False
        if found := _BLOCK.search(inside):
            block = int(found[2])
            adds_nothing = part.adds_nothing(block)
            origin = _BLOCK.sub(rf"\g<1>.{part.origin_of(block)}.", inside)
        layer = _PARAMETER.sub("", _BLOCK.sub("", inside))
        tensor = small[prefix + origin]
        if adds_nothing and layer in _BLOCK_OUTPUTS:
            return tensor.new_zeros(self.shapes[name])
        if layer in ("model.embed_tokens", "lm_head"):
            words = tensor[: _first_action_id(self.source)]
            tensor = torch.cat([tensor, words.float().mean(dim=0, keepdim=True).to(tensor.dtype)])
        return part.layers[layer].widened(tensor)

    def _vocabulary_axis(self) -> Axis:
        small, wide = self.source.language.vocabulary, self.target.language.vocabulary
        origin = torch.full((wide,), small)  # the row behind the small network's, which `tensor` appends
        origin[[self.token_id(token) for token in range(small)]] = torch.arange(small)
        return Axis(origin, torch.ones(wide))


def widened(small: OpenVLA, sizes: TargetSizes) -> OpenVLA:
    """The wide network in memory, on the small one's device and in its dtype, made there tensor by tensor.

    Raises ValueError for sizes that the small network cannot be widened to.
    """
    widening = Widening(small.config, sizes.of(small.config))
    wide = OpenVLA.from_config(widening.target, device="meta", dtype=small.dtype)
    wide.load_state_dict(dict(widening.tensors(small.state_dict())), assign=True)
    return wide.eval()


def _tower_part(source: TowerConfig, target: TowerConfig) -> Part:
    stream = Axis.cyclic(source.width, target.width)
    hidden = Axis.cyclic(source.mlp, target.mlp)
    tokens = ("cls_token", "reg_token", "pos_embed", "attn_pool.latent")
    vectors = ("norm", "norm1", "norm2", "ls1", "ls2", "attn_pool.norm")
    matrices = {
        "attn.qkv": Sides(joined([stream] * 3, [source.width] * 3), stream),
        "attn.proj": Sides(stream, stream),
        "attn_pool.q": Sides(stream, stream),
        "attn_pool.kv": Sides(joined([stream] * 2, [source.width] * 2), stream),
        "attn_pool.proj": Sides(stream, stream),
    }
    for mlp in ("mlp", "attn_pool.mlp"):
        matrices |= {f"{mlp}.fc1": Sides(hidden, stream), f"{mlp}.fc2": Sides(stream, hidden)}
    layers = dict.fromkeys((*tokens, *vectors, "patch_embed.proj"), Sides(stream)) | matrices
    return Part(layers, source.blocks - 1, target.blocks - 1)


def _projector_part(source: OpenVLAConfig, target: OpenVLAConfig) -> Part:
    towers = ((source.dinov2.width, target.dinov2.width), (source.siglip.width, target.siglip.width))
    vision = joined([Axis.cyclic(*sizes) for sizes in towers], [small for small, _ in towers])
    hidden = Axis.cyclic(source.projector_hidden, target.projector_hidden)
    stream = Axis.cyclic(source.language.width, target.language.width)
    return Part({"fc1": Sides(hidden, vision), "fc2": Sides(stream, hidden), "fc3": Sides(stream, stream)})


def _language_part(source: LanguageConfig, target: LanguageConfig, vocabulary: Axis) -> Part:
    stream = Axis.cyclic(source.width, target.width)
    layers = {f"model.{name}": sides for name, sides in layer_sides(source, target).items()} | {
        "model.norm": Sides(stream),
        "model.embed_tokens": Sides(vocabulary, stream.written),
        "lm_head": Sides(vocabulary, stream),
    }
    return Part(layers, source.layers, target.layers)


def layer_sides(source: LanguageConfig, target: LanguageConfig) -> dict[str, Sides]:
    """How the parts of one of the language model's layers are widened, by name."""
    stream = Axis.cyclic(source.width, target.width)
    queries = Axis.cyclic(source.heads * source.head_size, target.heads * target.head_size)
    keys = Axis.cyclic(source.key_value_heads * source.head_size, target.key_value_heads * target.head_size)
    hidden = Axis.cyclic(source.mlp, target.mlp)
    return dict.fromkeys(("input_layernorm", "post_attention_layernorm"), Sides(stream)) | {
        "self_attn.q_proj": Sides(queries, stream),
        "self_attn.k_proj": Sides(keys, stream),
        "self_attn.v_proj": Sides(keys, stream),
        "self_attn.o_proj": Sides(stream, queries),
        "mlp.gate_proj": Sides(hidden, stream),
        "mlp.up_proj": Sides(hidden, stream),
        "mlp.down_proj": Sides(stream, hidden),
    }


def _tower_of(source: TowerConfig, width: int | None, blocks: int | None, mlp: int | None) -> TowerConfig:
    """blocks: those that are computed."""
    wide = _given(width, source.width)
    _whole_factor(f"{source.kind}_width", source.width, wide)
    blocks = _given(blocks, source.blocks - 1) + 1
    return replace(source, width=wide, blocks=blocks, mlp=_given(mlp, source.mlp))


def _first_action_id(config: OpenVLAConfig) -> int:
    return config.action_vocabulary - ACTION_BINS


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


def _whole_factor(name: str, small: int, wide: int) -> int:
    """How often each feature is repeated; anything but a whole number would change what the norms divide by."""
    if wide < small or wide % small:
        nearest = max(1, round(wide / small)) * small
        raise ValueError(f"{name} must be a whole multiple of the small network's {small}, got {wide}; give {nearest}")
    return wide // small


def _check(source: OpenVLAConfig, target: OpenVLAConfig) -> None:
    """Raise ValueError for the first reason why `target` cannot compute what `source` does."""
    small, wide = source.language, target.language
    _whole_factor("dinov2_width", source.dinov2.width, target.dinov2.width)
    _whole_factor("siglip_width", source.siglip.width, target.siglip.width)
    _whole_factor("text_width", small.width, wide.width)
    for name, least, given in (
        ("dinov2_blocks", source.dinov2.blocks - 1, target.dinov2.blocks - 1),
        ("dinov2_mlp", source.dinov2.mlp, target.dinov2.mlp),
        ("siglip_blocks", source.siglip.blocks - 1, target.siglip.blocks - 1),
        ("siglip_mlp", source.siglip.mlp, target.siglip.mlp),
        ("text_layers", small.layers, wide.layers),
        ("text_mlp", small.mlp, wide.mlp),
        ("text heads", small.heads, wide.heads),
        ("vocabulary", small.vocabulary, wide.vocabulary),
    ):
        if given < least:
            raise ValueError(
                f"{name} must be at least the small network's {least}, got {given}; leave it out or raise it"
            )
    for name, kept, found in (
        ("head size", small.head_size, wide.head_size),
        ("queries per key head", small.heads // small.key_value_heads, wide.heads // wide.key_value_heads),
        ("rms_norm_eps", small.norm_epsilon, wide.norm_epsilon),
        ("rope_theta", small.rotary_base, wide.rotary_base),
        ("pad_to_multiple_of", source.pad_to_multiple_of, target.pad_to_multiple_of),
    ):
        if found != kept:
            raise ValueError(
                f"{name} must stay the small network's {kept}, got {found}; build the target by TargetSizes.of"
            )
