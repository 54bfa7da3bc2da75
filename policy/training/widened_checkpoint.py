"""A widened policy on disk, in the published layout, written with no more than one shard in memory.

Knows files, and how the ids of a word tokenizer follow the rows they name. Knows nothing of how tensors are widened
(`policy.training.widen`).
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from policy.drafting.motion import MOTION_FILE
from policy.drafting.registry import FOLDER
from policy.openvla.checkpoint import (
    CONFIG_FILE,
    INDEX_FILE,
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    STATISTICS_FILE,
    TOKENIZER_FILES,
    CheckpointError,
    checkpoint_hash,
    load_checkpoint,
)
from policy.openvla.config import OpenVLAConfig
from policy.training.widen import TargetSizes, Widening
from policy.training.widened_drafters import drafters_beside, write_widened_drafters

GENERATION_FILE = "generation_config.json"
CARD_FILE = "README.md"
SHARD_BYTES = 5 * 10**9
# Independent of all sizes; the motion drafter counts in bins, not in token ids.
_UNCHANGED_FILES = (*TOKENIZER_FILES, PREPROCESSOR_FILE, PROCESSOR_FILE, STATISTICS_FILE, MOTION_FILE)


def widen_checkpoint(
    source: Path,
    output: Path,
    sizes: TargetSizes,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int = SHARD_BYTES,
    on_file: Callable[[Path], None] | None = None,
) -> None:
    """Write the policy of the checkpoint directory `source`, widened with the trained drafters beside it, to `output`,
    which appears once it is complete.

    max_shard_bytes: largest weights file and, besides the small network, the memory that is needed. on_file: told of
    each weights file when it has been written.
    Raises CheckpointError when `source` is no checkpoint or its tokenizer cannot follow a larger vocabulary, when
    `output` is there already or the disk too full, and ValueError for sizes that `source` cannot be widened to.
    """
    if max_shard_bytes <= 0:
        raise ValueError(f"max_shard_bytes must be positive, got {max_shard_bytes}")
    if output.exists():
        raise CheckpointError(f"{output} is there already; choose a new directory")
    model = load_checkpoint(source, dtype=dtype)
    widening = Widening(model.config, sizes.of(model.config))
    contents = _json_files(source, widening, dtype)
    output.parent.mkdir(parents=True, exist_ok=True)
    _check_space(output.parent, widening, dtype)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        for name in _UNCHANGED_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, fresh / name)
        for name, content in contents.items():
            (fresh / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (fresh / CARD_FILE).write_text(model_card(source, widening, dtype), encoding="utf-8")
        folders = drafters_beside(source, widening.target)
        write_widened_drafters(folders, model, widening.target.language, fresh / FOLDER)
        _write_weights(fresh, widening, model.state_dict(), dtype, max_shard_bytes, on_file or (lambda path: None))
        fresh.rename(output)


def parameter_count(widening: Widening) -> int:
    """Numbers in the wide network's tensors, those the layout stores without use included."""
    return sum(map(math.prod, widening.shapes.values()))


def model_card(source: Path, widening: Widening, dtype: torch.dtype) -> str:
    """What a widened checkpoint says of itself, in Markdown."""
    small, wide = widening.source, widening.target
    published = wide == OpenVLAConfig()
    shape = "OpenVLA-7B's shape" if published else "a larger shape"
    cost = (
        "It has exactly the tensors of the published openvla-7b, so it costs the same memory and arithmetic"
        if published
        else "It has the tensors of an OpenVLA of this size and costs the memory and arithmetic of one"
    )
    rows = "\n".join(f"| {name} | {before} | {after} |" for name, before, after in _size_rows(small, wide))
    number_format = str(dtype).removeprefix("torch.")
    return f"""# A small policy widened to {shape}

**This is not OpenVLA.** It is a small policy's function in a large network: {parameter_count(widening):,} parameters
in {number_format}, made from `{source.name}` by copying its features (`scripts/widen_policy.py`). Nothing in it was
trained at this size, and no weight comes from a published model.
{cost}.
It acts as the small policy does, up to rounding: in bfloat16, bins that are nearly tied may change places.

It is for measuring latency and success together, at a real network's cost, where published weights are not at hand.
Success rates are the small policy's and say nothing of OpenVLA's. Say so wherever such a figure is shown.

| | small policy | this checkpoint |
|---|---|---|
{rows}

- Features, attention heads and hidden units are copied, and what reads them gives each copy its share of the weight.
- Added blocks and layers add zero. The last block of each vision tower is stored and not computed, as in the original.
- Words keep their token ids; action ids and padding are at the end of the vocabulary. Rows between them are the mean of
  the words' rows: their logit is never the largest. They do take part in probabilities over all ids.
- Source: hash `{checkpoint_hash(source)}`.
"""


def _size_rows(small: OpenVLAConfig, wide: OpenVLAConfig) -> list[tuple[str, str, str]]:
    def sizes(config: OpenVLAConfig) -> list[tuple[str, str]]:
        text = config.language
        towers = [
            (f"{tower.kind} tower", f"{tower.width} wide, {tower.blocks} blocks stored, MLP {tower.mlp}")
            for tower in (config.dinov2, config.siglip)
        ]
        model = f"{text.width} wide, {text.layers} layers, {text.heads} heads, MLP {text.mlp}"
        return [*towers, ("language model", model), ("vocabulary", f"{text.vocabulary} rows")]

    return [(name, before, after) for (name, before), (_, after) in zip(sizes(small), sizes(wide), strict=True)]


def _check_space(directory: Path, widening: Widening, dtype: torch.dtype) -> None:
    needed, free = parameter_count(widening) * dtype.itemsize, shutil.disk_usage(directory).free
    if needed > free:
        raise CheckpointError(
            f"{directory} has {free / 1e9:.1f} GB free and the widened checkpoint takes {needed / 1e9:.1f} GB; "
            "choose another disk or smaller sizes"
        )


def _write_weights(
    directory: Path,
    widening: Widening,
    small: Mapping[str, Tensor],
    dtype: torch.dtype,
    max_shard_bytes: int,
    on_file: Callable[[Path], None],
) -> None:
    layout = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in widening.shapes.items()}
    shards = split_torch_state_dict_into_shards(layout, max_shard_size=max_shard_bytes)
    for file_name, names in shards.filename_to_tensors.items():
        # Inline, so that a shard is let go of before the next one is made.
        save_file(
            {name: widening.tensor(name, small) for name in names}, directory / file_name, metadata={"format": "pt"}
        )
        shutil.copymode(directory / CONFIG_FILE, directory / file_name)  # made so that only its owner may read it
        on_file(directory / file_name)
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _json_files(source: Path, widening: Widening, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Contents of the files that name sizes or ids."""
    target = widening.target
    files = {CONFIG_FILE: _read(source / CONFIG_FILE) | target.to_json(str(dtype).removeprefix("torch."))}
    if (source / GENERATION_FILE).is_file():
        files[GENERATION_FILE] = _read(source / GENERATION_FILE) | {"pad_token_id": target.pad_token_id}
    if target.language.vocabulary != widening.source.language.vocabulary:
        files["tokenizer.json"] = _moved_tokenizer(source / "tokenizer.json", widening)
    return files


def _moved_tokenizer(path: Path, widening: Widening) -> dict[str, Any]:
    """A word tokenizer whose ids behind the words, such as that of `<PAD>`, follow their rows."""
    content = _read(path)
    kind = content["model"].get("type")
    if kind != "WordLevel":
        raise CheckpointError(
            f"{path} is a {kind} tokenizer, whose ids are not moved to another place; "
            f"keep the vocabulary of {widening.source.language.vocabulary} rows"
        )
    vocabulary = {piece: widening.token_id(token) for piece, token in content["model"]["vocab"].items()}
    added = [token | {"id": widening.token_id(token["id"])} for token in content["added_tokens"]]
    return content | {"added_tokens": added, "model": content["model"] | {"vocab": vocabulary}}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
