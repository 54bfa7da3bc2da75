"""OpenVLA checkpoints on disk: found, checked, loaded, hashed and written in the published layout.

Knows file names, sharding and dtypes. Every problem with a checkpoint is one `CheckpointError` that says what was
expected, what was found and what to do. Knows nothing of what statistics and tokenizer files mean; it only carries
them.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, save_torch_state_dict, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from policy.openvla.config import IMAGE_SIDE, OpenVLAConfig
from policy.openvla.model import OpenVLA

CONFIG_FILE = "config.json"
STATISTICS_FILE = "dataset_statistics.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"  # what transformers 5 writes instead, with the same settings in it
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
CHECKPOINT_PATTERNS = (
    "model*.safetensors",
    INDEX_FILE,
    CONFIG_FILE,
    "generation_config.json",
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    STATISTICS_FILE,
    *TOKENIZER_FILES,
    # What speculative decoding fitted or trained for this checkpoint, where somebody published it with the weights.
    "motion_drafter.json",
    "drafters/*/*.json",
    "drafters/*/*.safetensors",
)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FLOAT_DTYPES = ("BF16", "F16", "F32")
# Buffers that old versions of transformers saved and that are computed here.
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"
_LISTED = 5
# Networks that OpenVLA-OFT trains beside the published ones; files are named after them.
_OFT_NETWORKS = ("action_head", "proprio_projector", "noisy_action_projector", "vision_backbone--")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says what was expected, what was found and what to do."""


def locate_checkpoint(checkpoint: str | Path, revision: str | None = None) -> Path:
    """The local directory of a checkpoint: itself, or a hub id ("openvla/openvla-7b") downloaded into the hub's cache.

    revision: branch, tag or commit on the hub. Raises CheckpointError when there is neither, or no weights in it.
    """
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        _refuse_oft(path, [file.name for file in path.iterdir()])
        weight_files(path)  # whatever else is missing in an adapter or a pickled checkpoint, this is what to say first
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; expected the directory that holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    if not _HUB_ID.fullmatch(str(checkpoint)):
        raise CheckpointError(
            f"{checkpoint}: no such directory, and no hub id either; expected a checkpoint directory or 'owner/name'"
        )
    try:
        path = Path(snapshot_download(str(checkpoint), revision=revision, allow_patterns=list(CHECKPOINT_PATTERNS)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{checkpoint}: no such directory here, and the hub did not deliver it ({reason}); "
            "check the spelling, the network and, for a private checkpoint, `hf auth login`"
        ) from error
    _refuse_oft(checkpoint, _published_files(str(checkpoint), revision))
    weight_files(path)
    return path


def _published_files(hub_id: str, revision: str | None) -> list[str]:
    """Names of all files on the hub, wanted or not; none where the hub cannot be asked, as what is cached works too."""
    try:
        return HfApi().list_repo_files(hub_id, revision=revision)
    except Exception:  # the hub's, httpx's or requests', by the version of huggingface_hub
        return []


def _refuse_oft(checkpoint: str | Path, names: Iterable[str]) -> None:
    """Raise CheckpointError for OpenVLA-OFT, which has the same tensors but does not say its actions in tokens."""
    if networks := sorted(name for name in names if name.startswith(_OFT_NETWORKS)):
        raise CheckpointError(
            f"{checkpoint}: expected a policy that says its actions in tokens, found networks of OpenVLA-OFT: "
            f"{_some(networks)}; its actions come from a head of its own, which is not supported. Serve "
            "openvla-7b or a fine-tune made with OpenVLA's own script"
        )


def load_checkpoint(
    directory: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    config_file: Path | None = None,
) -> OpenVLA:
    """The network of a checkpoint directory, in evaluation mode.

    config_file: another `config.json` for the same weights. Each shard is memory-mapped and its tensors go one by one
    to the device, so the host never holds more than one shard besides a model that lives there.
    Raises CheckpointError for a missing, misshapen, unexpected or quantised tensor and for anything that is no OpenVLA
    checkpoint.
    """
    shards = weight_files(directory)
    headers = _read_headers(shards)
    shapes = {name: shape for header in headers.values() for name, shape in header.items()}
    content = _read_json(config_file or directory / CONFIG_FILE)
    try:
        config = OpenVLAConfig.from_json(content, shapes)
    except ValueError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    model = OpenVLA.from_config(config, device="meta", dtype=dtype)
    _compare_tensors(directory, expected_shapes(model), shapes)
    for shard, header in headers.items():
        with safe_open(shard, framework="pt") as tensors:
            # copy=True: a model must not change when somebody overwrites the mapped file.
            loaded = {name: tensors.get_tensor(name).to(device, dtype, copy=True) for name in header}
        model.load_state_dict(loaded, strict=False, assign=True)
    return model.eval()


def expected_shapes(model: OpenVLA) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint directory, one or all shards of the index.

    Raises CheckpointError when there are none, when a shard is missing, and names adapters and pickled weights for what
    they are.
    """
    index = directory / INDEX_FILE
    if index.is_file():
        shards = [directory / name for name in sorted(set(_read_json(index).get("weight_map", {}).values()))]
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing or not shards:
            raise CheckpointError(
                f"{directory}: {INDEX_FILE} names {len(shards)} shards, missing here: {_some(missing)}; copy them too"
            )
        return shards
    if (directory / WEIGHTS_FILE).is_file():
        return [directory / WEIGHTS_FILE]
    found = sorted(path.name for path in directory.iterdir())
    if "adapter_config.json" in found:
        advice = "it is a LoRA adapter: merge it into its base model first (peft's merge_and_unload, save_pretrained)"
    elif any(name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")) for name in found):
        advice = "pickled weights are never loaded: save the model again as safetensors (save_pretrained)"
    else:
        advice = "point at the directory that `save_pretrained` or a hub download wrote"
    raise CheckpointError(f"{directory}: expected {WEIGHTS_FILE} or {INDEX_FILE}, found {_some(found)}; {advice}")


def checkpoint_hash(directory: Path) -> str:
    """Sha256 (hex) over names and contents of all files that decide the policy's actions: weights, configurations,
    tokenizer.
    """
    names = (CONFIG_FILE, PREPROCESSOR_FILE, PROCESSOR_FILE, STATISTICS_FILE, *TOKENIZER_FILES)
    names = (CONFIG_FILE, PREPROCESSOR_FILE, PROCESSOR_FILE, STATISTICS_FILE, *TOKENIZER_FILES)
    small = [directory / name for name in names]
    files = sorted([*weight_files(directory), *(path for path in small if path.is_file())])
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_file_digest, files))
    lines = "".join(f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def save_checkpoint(
    model: OpenVLA,
    directory: Path,
    *,
    tokenizer_directory: Path,
    statistics: Mapping[str, Any],
    dtype: torch.dtype = torch.bfloat16,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write a checkpoint directory in the published layout; it replaces a checkpoint already there only once it is
    complete.

    tokenizer_directory: where the tokenizer files are copied from. statistics: the contents of
    `dataset_statistics.json`, also written to `config.json` as `norm_stats`. max_shard_size: bytes, or text such as
    "7GB".
    Raises CheckpointError when `directory` holds something other than a checkpoint or the tokenizer is incomplete.
    """
    tokenizer = [tokenizer_directory / name for name in TOKENIZER_FILES if (tokenizer_directory / name).is_file()]
    if not (tokenizer_directory / "tokenizer.json").is_file():
        found = _some(tokenizer_directory.iterdir() if tokenizer_directory.is_dir() else ())
        raise CheckpointError(f"{tokenizer_directory}: expected a tokenizer.json, found {found}")
    if directory.exists() and not (directory.is_dir() and _replaceable(directory)):
        raise CheckpointError(f"{directory} holds something other than a checkpoint; choose an empty or new directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        weights = {name: tensor.detach().to(dtype) for name, tensor in model.state_dict().items()}
        save_torch_state_dict(weights, fresh, max_shard_size=max_shard_size)
        for path in tokenizer:
            shutil.copyfile(path, fresh / path.name)
        for name, content in _json_files(model.config, statistics, dtype).items():
            (fresh / name).write_text(json.dumps(content, indent=2) + "\n")
        for weights_file in weight_files(fresh):  # made as a temporary file, which only its owner may read
            shutil.copymode(fresh / CONFIG_FILE, weights_file)
        if directory.exists():
            directory.rename(Path(scratch) / "replaced")
        fresh.rename(directory)


def _json_files(config: OpenVLAConfig, statistics: Mapping[str, Any], dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Contents of the four JSON files beside weights and tokenizer."""
    preprocessor = {
        "image_processor_type": "PrismaticImageProcessor",
        "processor_class": "PrismaticProcessor",
        "use_fused_vision_backbone": True,
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, IMAGE_SIDE, IMAGE_SIDE]] * 2,
        "interpolations": ["bicubic", "bicubic"],
        "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
        "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
    }
    return {
        CONFIG_FILE: config.to_json(str(dtype).removeprefix("torch.")) | {"norm_stats": dict(statistics)},
        STATISTICS_FILE: dict(statistics),
        PREPROCESSOR_FILE: preprocessor,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": config.pad_token_id},
    }


def _replaceable(directory: Path) -> bool:
    names = {path.name for path in directory.iterdir()}
    return not names or CONFIG_FILE in names


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: {path.name} is missing; found {_some(path.parent.iterdir())}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no valid JSON ({error}); copy the file again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, found {type(content).__name__}")
    return content


def _read_headers(shards: Sequence[Path]) -> dict[Path, dict[str, tuple[int, ...]]]:
    """Names and shapes of the tensors in each shard, without reading their data."""
    headers: dict[Path, dict[str, tuple[int, ...]]] = {}
    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as tensors:
                slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 (not a mapping)
                kept = {name: part for name, part in slices.items() if not name.endswith(_IGNORED_SUFFIX)}
                dtypes = {name: part.get_dtype() for name, part in kept.items()}
                headers[shard] = {name: tuple(part.get_shape()) for name, part in kept.items()}
        except SafetensorError as error:
            raise CheckpointError(
                f"{shard} is no complete safetensors file ({error}); "
                "an interrupted download or a Git LFS pointer? Fetch it again"
            ) from error
        if not set(dtypes.values()) <= set(_FLOAT_DTYPES):
            found = _some(f"{name} {dtype}" for name, dtype in dtypes.items() if dtype not in _FLOAT_DTYPES)
            raise CheckpointError(f"{shard}: expected tensors in {', '.join(_FLOAT_DTYPES)}, found {found}")
    return headers


def _compare_tensors(
    directory: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise one CheckpointError that lists all three kinds of difference."""
    missing = [f"{name} {shape}" for name, shape in expected.items() if name not in found]
    unexpected = [f"{name} {shape}" for name, shape in found.items() if name not in expected]
    misshapen = [
        f"{name}: expected {shape}, found {found[name]}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = {"missing": missing, "misshapen": misshapen, "unexpected": unexpected}
    if any(problems.values()):
        lines = "".join(f"\n  {kind} ({len(names)}): {_some(names)}" for kind, names in problems.items() if names)
        raise CheckpointError(
            f"{directory}: the tensors are not those of the network that config.json and the towers describe{lines}"
        )


def _some(names: Iterable[object]) -> str:
    """The first few names, and how many more there are."""
    texts = [name.name if isinstance(name, Path) else str(name) for name in names]
    more = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return (", ".join(texts[:_LISTED]) or "nothing") + more


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
