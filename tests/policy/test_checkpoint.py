"""Checkpoints on disk: what is written is read back, and every broken one gives one error that says what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_openvla import statistics_json

from policy.openvla import checkpoint as checkpoint_module
from policy.openvla.checkpoint import (
    CheckpointError,
    checkpoint_hash,
    load_checkpoint,
    locate_checkpoint,
    save_checkpoint,
    weight_files,
)
from policy.openvla.model import OpenVLA

LAYER = "language_model.model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def broken(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the small checkpoint, to be damaged."""
    return Path(shutil.copytree(small_checkpoint, tmp_path / "copy"))


def edit_weights(directory: Path, **changes: torch.Tensor | None) -> None:
    """Replace (or with None remove) tensors; a double underscore in a name stands for a dot."""
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, directory / "model.safetensors")


def test_saved_model_is_loaded_unchanged(small_model: OpenVLA, small_checkpoint: Path) -> None:
    loaded = load_checkpoint(small_checkpoint, dtype=torch.bfloat16)
    assert loaded.config == small_model.config
    assert not loaded.training
    for (name, tensor), (loaded_name, found) in zip(
        small_model.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert name == loaded_name
        assert torch.equal(found, tensor.bfloat16())
    assert load_checkpoint(small_checkpoint, dtype=torch.float32).dtype == torch.float32


def test_written_files_are_those_of_a_published_checkpoint(small_checkpoint: Path) -> None:
    assert sorted(path.name for path in small_checkpoint.iterdir()) == [
        "config.json",
        "dataset_statistics.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert len({path.stat().st_mode for path in small_checkpoint.iterdir()}) == 1
    config = json.loads((small_checkpoint / "config.json").read_text())
    assert config["norm_stats"] == statistics_json()
    assert config["torch_dtype"] == config["text_config"]["torch_dtype"] == "bfloat16"


def test_shards_hold_the_same_model(small_model: OpenVLA, tokenizer_directory: Path, tmp_path: Path) -> None:
    directory = tmp_path / "sharded"
    save_checkpoint(
        small_model,
        directory,
        tokenizer_directory=tokenizer_directory,
        statistics=statistics_json(),
        dtype=torch.float32,
        max_shard_size=800_000,
    )
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    shards = weight_files(directory)
    assert len(shards) > 2
    assert {shard.name for shard in shards} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in small_model.parameters())
    loaded = load_checkpoint(directory, dtype=torch.float32).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in small_model.state_dict().items())
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"missing here: {shards[1].name}"):
        load_checkpoint(directory)


def test_saving_replaces_a_checkpoint_but_nothing_else(small_model: OpenVLA, broken: Path, tmp_path: Path) -> None:
    (broken / "model-00001-of-00002.safetensors").write_bytes(b"left over")
    save_checkpoint(small_model, broken, tokenizer_directory=broken, statistics=statistics_json("other"))
    assert not (broken / "model-00001-of-00002.safetensors").exists()
    assert "other" in (broken / "dataset_statistics.json").read_text()
    assert list(tmp_path.iterdir()) == [broken]
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match="something other than a checkpoint"):
        save_checkpoint(small_model, precious, tokenizer_directory=broken, statistics={})
    with pytest.raises(CheckpointError, match=r"expected a tokenizer\.json, found thesis\.tex"):
        save_checkpoint(small_model, tmp_path / "new", tokenizer_directory=precious, statistics={})


def test_loaded_model_survives_changes_to_its_file(broken: Path) -> None:
    model = load_checkpoint(broken, dtype=torch.bfloat16)
    before = model.projector.fc1.weight.clone()
    with (broken / "model.safetensors").open("r+b") as file:
        file.seek(-100_000, 2)
        file.write(b"\xff" * 100_000)
    assert torch.equal(model.projector.fc1.weight, before)


def test_all_tensor_problems_come_in_one_error(broken: Path) -> None:
    edit_weights(
        broken, **{LAYER.replace(".", "__"): None, "projector__fc3__bias": torch.zeros(5), "extra": torch.ones(2)}
    )
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(broken)
    message = str(caught.value)
    assert f"missing (1): {LAYER} (160, 96)" in message
    assert "misshapen (1): projector.fc3.bias: expected (96,), found (5,)" in message
    assert "unexpected (1): extra (2,)" in message


def test_old_rotary_buffers_are_ignored(broken: Path) -> None:
    edit_weights(broken, language_model__model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(16))
    assert isinstance(load_checkpoint(broken), OpenVLA)


def test_quantised_tensors_are_refused(broken: Path) -> None:
    edit_weights(broken, projector__fc3__bias=torch.zeros(96, dtype=torch.int8))
    with pytest.raises(CheckpointError, match=r"expected tensors in BF16, F16, F32, found projector\.fc3\.bias I8"):
        load_checkpoint(broken)


def test_truncated_file_is_named(broken: Path) -> None:
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no complete safetensors file"):
        load_checkpoint(broken)


@pytest.mark.parametrize(
    ("file", "advice"),
    [
        ("pytorch_model.bin", "pickled weights are never loaded"),
        ("adapter_config.json", "LoRA adapter: merge it"),
        ("notes.txt", "point at the directory"),
    ],
)
def test_other_kinds_of_directory_are_told_apart(tmp_path: Path, file: str, advice: str) -> None:
    (tmp_path / file).touch()
    with pytest.raises(CheckpointError, match=f"found {file}; .*{advice}"):
        load_checkpoint(tmp_path)


def test_another_architecture_is_named_with_its_directory(broken: Path) -> None:
    (broken / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(CheckpointError, match=f"^{broken}: .*model_type must be 'openvla', found 'llava'"):
        load_checkpoint(broken)


def test_damaged_json_is_named(broken: Path) -> None:
    (broken / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is no valid JSON"):
        load_checkpoint(broken)
    (broken / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing; found .*tokenizer"):
        load_checkpoint(broken)


def test_a_file_or_an_unknown_name_is_no_checkpoint(small_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file; expected the directory"):
        locate_checkpoint(small_checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match="no such directory, and no hub id either"):
        locate_checkpoint("/no/such/place")


def test_hub_id_is_downloaded(small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(small_checkpoint)

    monkeypatch.setattr(checkpoint_module, "snapshot_download", download)
    monkeypatch.setattr(checkpoint_module, "HfApi", lambda: SimpleNamespace(list_repo_files=lambda *_, **__: ["a.py"]))
    assert locate_checkpoint("openvla/openvla-7b", revision="main") == small_checkpoint
    assert asked["name"] == "openvla/openvla-7b"
    assert asked["revision"] == "main"
    assert "model*.safetensors" in asked["patterns"]
    assert not any(pattern.endswith((".py", ".bin")) for pattern in asked["patterns"])


@pytest.mark.parametrize("name", ["action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"])
def test_a_policy_with_an_action_head_of_its_own_is_refused(
    name: str, broken: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVLA-OFT's tensors are OpenVLA's, so it would load, and its tokens would mean nothing."""
    (broken / name).touch()
    with pytest.raises(CheckpointError, match=f"found networks of OpenVLA-OFT: {name}; .* is not supported"):
        locate_checkpoint(broken)
    # From the hub, such files are not even fetched.
    hub = SimpleNamespace(list_repo_files=lambda hub_id, revision: ["config.json", name])
    monkeypatch.setattr(checkpoint_module, "snapshot_download", lambda *_, **__: str(small_checkpoint))
    monkeypatch.setattr(checkpoint_module, "HfApi", lambda: hub)
    with pytest.raises(CheckpointError, match=r"moojink/oft: .*OpenVLA-OFT"):
        locate_checkpoint("moojink/oft")


def test_a_cached_checkpoint_needs_no_hub(small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> list[str]:
        raise ConnectionError("offline")

    monkeypatch.setattr(checkpoint_module, "snapshot_download", lambda *_, **__: str(small_checkpoint))
    monkeypatch.setattr(checkpoint_module, "HfApi", lambda: SimpleNamespace(list_repo_files=unreachable))
    assert locate_checkpoint("openvla/openvla-7b") == small_checkpoint


def test_unreachable_hub_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise OSError("connection refused\nand a long story")

    monkeypatch.setattr(checkpoint_module, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=r"openvla/opnvla: .*\(connection refused\); check the spelling"):
        locate_checkpoint("openvla/opnvla")


def test_hash_follows_every_file_that_decides_actions(small_checkpoint: Path, broken: Path) -> None:
    assert checkpoint_hash(broken) == checkpoint_hash(small_checkpoint)
    (broken / "README.md").write_text("changes nothing")
    assert checkpoint_hash(broken) == checkpoint_hash(small_checkpoint)
    seen = {checkpoint_hash(broken)}
    for name in ("config.json", "dataset_statistics.json", "preprocessor_config.json", "tokenizer.json"):
        (broken / name).write_text((broken / name).read_text() + " ")
        seen.add(checkpoint_hash(broken))
    edit_weights(broken, projector__fc3__bias=torch.zeros(96))
    seen.add(checkpoint_hash(broken))
    assert len(seen) == 6
