"""One policy whose weights are the mean of several trained from one another ("model soup", Wortsman et al. 2022).

Policies that were fine-tuned from the same weights mostly lie in one basin, where the mean keeps what each has learnt
and loses mistakes that only one of them makes, at no cost in time. Policies trained from different random weights do
not: their mean knows nothing. Knows checkpoints; nothing of how they were trained.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from policy.openvla.action_tokens import load_statistics
from policy.openvla.checkpoint import (
    TOKENIZER_FILES,
    CheckpointError,
    checkpoint_hash,
    load_checkpoint,
    save_checkpoint,
)
from policy.openvla.model import OpenVLA

AVERAGE_FILE = "training_config.json"


def average_checkpoints(sources: Sequence[Path], shares: Sequence[float], output: Path) -> dict[str, float]:
    """Write the mean of the checkpoint directories `sources`, weighted by `shares`, to `output`, in bfloat16.

    shares: positive, scaled to sum to 1. Needs memory for the sum in float32 and one of the policies.
    Returns the share by the sources' hashes, as also written to the new directory's `training_config.json`, together
    with what theirs say.
    Raises CheckpointError for what is no checkpoint, for policies that differ in more than their weights, and when
    `output` is there already; ValueError for shares that are not positive or not as many, and for equal policies.
    """
    if len(sources) < 2 or len(shares) != len(sources) or min(shares) <= 0:
        raise ValueError(
            f"expected two policies or more and a positive share of each, got {len(sources)} and {list(shares)}"
        )
    if output.exists():
        raise CheckpointError(f"{output} is there already; choose a new directory")
    hashes = [checkpoint_hash(source) for source in sources]
    if len(set(hashes)) < len(hashes):
        raise ValueError("the same policy is given twice; leave one out, or give it a larger share")
    first, *others = sources
    for other in others:
        _check_alike(first, other)
    total = sum(shares)
    mean = load_checkpoint(first, dtype=torch.float32)
    tensors = mean.state_dict()
    for tensor in tensors.values():
        tensor *= shares[0] / total
    for source, share in zip(others, shares[1:], strict=True):
        _add(tensors, load_checkpoint(source), share / total)
    save_checkpoint(mean, output, tokenizer_directory=first, statistics=_statistics(first))
    parts = {digest: share / total for digest, share in zip(hashes, shares, strict=True)}
    trained = {
        digest: json.loads((source / AVERAGE_FILE).read_text())
        for digest, source in zip(hashes, sources, strict=True)
        if (source / AVERAGE_FILE).is_file()
    }
    (output / AVERAGE_FILE).write_text(json.dumps({"average_of": parts, "training": trained}, indent=1) + "\n")
    return parts


def _add(tensors: dict[str, torch.Tensor], model: OpenVLA, share: float) -> None:
    for name, tensor in model.state_dict().items():
        tensors[name].add_(tensor.float(), alpha=share)


def _check_alike(first: Path, other: Path) -> None:
    """Raise CheckpointError unless the two policies read and write the same tokens in a network of the same shape."""
    problems = [
        name
        for name in TOKENIZER_FILES
        if (first / name).is_file() != (other / name).is_file()
        or ((first / name).is_file() and (first / name).read_bytes() != (other / name).read_bytes())
    ]
    if _actions(first) != _actions(other):
        problems.append("how tokens become actions")
    sizes = [{n: t.shape for n, t in load_checkpoint(path, "meta").state_dict().items()} for path in (first, other)]
    if sizes[0] != sizes[1]:
        problems.append("the sizes of the network")
    if problems:
        raise CheckpointError(
            f"{first} and {other} differ in {', '.join(problems)}; "
            "only policies trained from one another can be averaged"
        )


def _statistics(directory: Path) -> dict[str, dict[str, Any]]:
    """What turns tokens into actions, by data set; how many frames it was drawn from is no longer true of a mean."""
    return {key: {"action": entry.to_json()} for key, entry in load_statistics(directory).items()}


def _actions(directory: Path) -> dict[str, list[Any]]:
    """The part of it that decides; mean and spread only describe the data."""
    return {
        key: [entry["action"][name] for name in ("q01", "q99", "mask")] for key, entry in _statistics(directory).items()
    }
