"""Draft heads on disk: `config.json` and `model.safetensors` in a folder of their own.

Knows the names of tensors in our files and in Spec-VLA's published ones, which carry a copy of the target's embedding
and may be pickles. Every problem is one `CheckpointError` that says what was expected, what was found and what to do.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from policy.drafting.head_network import HeadConfig, HeadNetwork
from policy.openvla.checkpoint import CONFIG_FILE, WEIGHTS_FILE, CheckpointError
from policy.openvla.model import OpenVLA

PICKLED_FILE = "pytorch_model.bin"
EMBEDDING = "embed_tokens.weight"
# Rotary frequencies, which old versions of transformers saved and which are computed here.
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"


def save_head(network: HeadNetwork, directory: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a head's folder; the weights appear under their name only when they are complete."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_FILE).write_text(json.dumps(network.config.to_json(), indent=2) + "\n", encoding="utf-8")
    unfinished = directory / f".{WEIGHTS_FILE}"
    weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, unfinished, metadata={"format": "pt"})
    unfinished.replace(directory / WEIGHTS_FILE)


def load_head(directory: Path, target: OpenVLA, kind: str) -> HeadNetwork:
    """A head of this kind for a target, on its device and in its number format, in evaluation mode.

    Reads our format and Spec-VLA's. Raises CheckpointError for a folder that holds no head or another target's.
    """
    config = _load_config(directory)
    if config.kind != kind:
        raise CheckpointError(
            f"{directory} holds a head of kind {config.kind!r}, expected {kind!r}; name another folder"
        )
    _compare_with_target(directory, config, target)
    weights = {name: tensor for name, tensor in _load_weights(directory).items() if not name.endswith(_IGNORED_SUFFIX)}
    embedding = weights.pop(EMBEDDING, None)
    expected = target.language_model.model.embed_tokens.weight.shape
    if embedding is not None and embedding.shape != expected:
        raise CheckpointError(
            f"{directory}: {EMBEDDING} is {tuple(embedding.shape)}, the target's {tuple(expected)}; "
            "a head works with the target it was trained for"
        )
    with torch.device("meta"):
        network = HeadNetwork(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted != found:
        different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        listed = ", ".join(f"{name} (expected {wanted.get(name)}, found {found.get(name)})" for name in different[:5])
        raise CheckpointError(f"{directory}: {len(different)} tensors are not those config.json describes: {listed}")
    network.load_state_dict(
        {name: tensor.to(target.device, target.dtype) for name, tensor in weights.items()}, assign=True
    )
    return network.eval().requires_grad_(False)


def _load_config(directory: Path) -> HeadConfig:
    path = directory / CONFIG_FILE
    try:
        return HeadConfig.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; a draft head is a folder with it and {WEIGHTS_FILE}") from None
    except (AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} describes no draft head: {error}") from error


def _load_weights(directory: Path) -> dict[str, Tensor]:
    tensors, pickled = directory / WEIGHTS_FILE, directory / PICKLED_FILE
    try:
        if tensors.is_file():
            return load_file(tensors)
        if pickled.is_file():
            # weights_only: tensors and plain containers, never code of whoever made the file.
            return torch.load(pickled, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{directory}: the weights cannot be read ({reason}); copy the file again") from error
    raise CheckpointError(f"{directory} holds neither {WEIGHTS_FILE} nor {PICKLED_FILE}, so no weights of a head")


def _compare_with_target(directory: Path, config: HeadConfig, target: OpenVLA) -> None:
    for name in ("width", "rotary_base"):
        own, wanted = getattr(config.layer, name), getattr(target.config.language, name)
        if own != wanted:
            raise CheckpointError(
                f"{directory}: the head's {name} is {own}, the target's {wanted}; "
                "a head works with the target it was trained for"
            )
