"""Drafters for a widened target, made from those of the small one without changing what they draft.

A head reads the target's hidden states and writes such, so it is widened as the target's own layers are
(`policy.training.widen`). A draft model sees frames and talks in bins, which no widening changes; it stays as it is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from policy.drafting.head_checkpoint import load_head, save_head
from policy.drafting.head_network import HeadConfig, HeadNetwork
from policy.drafting.registry import HEADS, SEEING_DRAFTERS, trained_drafters, trained_folder
from policy.openvla.checkpoint import CONFIG_FILE
from policy.openvla.config import LanguageConfig, OpenVLAConfig
from policy.openvla.model import OpenVLA
from policy.training.repeated_features import Axis, Sides, joined
from policy.training.widen import layer_sides

_LAYER_PREFIX = "layers.0."


def wide_folder_name(name: str) -> str:
    """The name of the folder, beside a small target's own drafters, of one trained for the target widened to 7B."""
    return f"{name}-7b"


def drafters_for_wide(checkpoint: Path, weights: Mapping[str, Path]) -> dict[str, Path]:
    """Folders of the drafters, by name, that a small target widened to 7B can use: where `weights` says, those trained
    for the wide target, or else the small one's own, which `write_widened_drafters` widens.
    """
    return drafters_beside(checkpoint, OpenVLAConfig()) | {name: Path(folder) for name, folder in weights.items()}


def drafters_beside(checkpoint: Path, wide: OpenVLAConfig) -> dict[str, Path]:
    """Folders of the drafters beside a small target, by name, that it can use once it is widened to `wide`: where that
    is 7B, those trained for it come first.
    """
    folders = {name: trained_folder(checkpoint, name) for name in trained_drafters(checkpoint, {})}
    if wide == OpenVLAConfig():
        own = {name: trained_folder(checkpoint, wide_folder_name(name)) for name in (*SEEING_DRAFTERS, *HEADS)}
        folders |= {name: folder for name, folder in own.items() if folder.is_dir()}
    return folders


def widened_head(small: HeadNetwork, language: LanguageConfig) -> HeadNetwork:
    """A head for a target whose language model was widened to `language`, on the small head's device and in its dtype.

    What it drafts stays the same but for rounding.
    """
    source = small.config.layer
    config = HeadConfig(small.config.kind, replace(language, layers=1))
    stream = Axis.cyclic(source.width, language.width)
    both = Sides(stream, joined([stream] * 2, [source.width] * 2))
    sides = {"fc": both} | {_LAYER_PREFIX + name: own for name, own in layer_sides(source, config.layer).items()}
    tensors = {
        name: tensor.index_select(1, stream.origin.to(tensor.device))
        if name == "queries"
        else sides[name.rpartition(".")[0]].widened(tensor)
        for name, tensor in small.state_dict().items()
    }
    with torch.device("meta"):
        wide = HeadNetwork(config)
    wide.load_state_dict(tensors, assign=True)
    return wide.eval().requires_grad_(False)


def write_widened_drafters(
    folders: Mapping[str, Path], target: OpenVLA, language: LanguageConfig, output: Path
) -> dict[str, Path]:
    """Folders of drafters, by name, for a target whose language model is widened to `language`, each `output/NAME`.

    folders: the small target's; heads that are as wide as `language` already are taken as they are. target: the small
    one, which other heads are checked against. Raises CheckpointError for a folder that holds none of its drafters.
    """
    written = {name: output / name for name in folders}
    for name, folder in folders.items():
        if name in HEADS and _width(folder) != language.width:
            save_head(widened_head(load_head(folder, target, name), language), written[name], target.dtype)
        else:
            shutil.copytree(folder, written[name])
    return written


def _width(folder: Path) -> int | None:
    """The width of a head's hidden states; None where there is no head, of which loading will complain."""
    try:
        return HeadConfig.from_json(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))).layer.width
    except (OSError, AttributeError, ValueError):
        return None
