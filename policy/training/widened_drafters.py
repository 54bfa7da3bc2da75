"""Drafters for a widened target, made from those of the small one without changing what they draft.

A head reads the target's hidden states and writes such, so it is widened as the target's own layers are
(`policy.training.widen`). A draft model sees frames and talks in bins, which no widening changes; it stays as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from policy.drafting.head_checkpoint import load_head, save_head
from policy.drafting.head_network import HeadConfig, HeadNetwork
from policy.drafting.registry import HEADS
from policy.openvla.config import LanguageConfig
from policy.openvla.model import OpenVLA
from policy.training.repeated_features import Axis, Sides, joined
from policy.training.widen import layer_sides

_LAYER_PREFIX = "layers.0."


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

    folders: the small target's. target: the small one, which heads are checked against. Raises CheckpointError for
    a folder that holds none of its drafters.
    """
    written = {name: output / name for name in folders}
    for name, folder in folders.items():
        if name in HEADS:
            save_head(widened_head(load_head(folder, target, name), language), written[name], target.dtype)
        else:
            shutil.copytree(folder, written[name])
    return written
