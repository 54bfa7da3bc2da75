"""The mean of several policies' weights is a policy, and only what belongs together is averaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_openvla import statistics_json

from policy.openvla.checkpoint import CheckpointError, checkpoint_hash, load_checkpoint, save_checkpoint
from policy.openvla.model import OpenVLA
from policy.training.averaging import average_checkpoints


@pytest.fixture
def moved(small_model, tokenizer_directory, tmp_path) -> Path:
    """The small policy with every weight moved by its own amount, drawn from more frames."""
    torch.manual_seed(1)
    other = OpenVLA.from_config(small_model.config, device="meta")
    weights = small_model.state_dict()
    other.load_state_dict({name: t + 0.1 * torch.randn_like(t) for name, t in weights.items()}, assign=True)
    statistics = statistics_json()
    statistics["libero_test"] |= {"num_transitions": 99}
    save_checkpoint(other, tmp_path / "moved", tokenizer_directory=tokenizer_directory, statistics=statistics)
    return tmp_path / "moved"


def test_every_weight_is_the_weighted_mean(small_checkpoint, moved, tmp_path):
    (moved / "training_config.json").write_text('{"steps": 5}')
    parts = average_checkpoints([small_checkpoint, moved], [3.0, 1.0], tmp_path / "mean")
    first, second, mean = (
        load_checkpoint(path, dtype=torch.float32).state_dict() for path in (small_checkpoint, moved, tmp_path / "mean")
    )
    assert mean.keys() == first.keys()
    for name, tensor in mean.items():
        torch.testing.assert_close(
            tensor, (0.75 * first[name] + 0.25 * second[name]).bfloat16().float(), rtol=0, atol=0
        )
    assert parts == {checkpoint_hash(small_checkpoint): 0.75, checkpoint_hash(moved): 0.25}
    told = json.loads((tmp_path / "mean" / "training_config.json").read_text())
    assert told == {"average_of": parts, "training": {checkpoint_hash(moved): {"steps": 5}}}
    statistics = json.loads((tmp_path / "mean" / "dataset_statistics.json").read_text())
    assert statistics == {"libero_test": {"action": statistics_json()["libero_test"]["action"]}}


def test_policies_of_other_words_or_actions_are_refused(small_checkpoint, moved, tmp_path):
    tokenizer = json.loads((moved / "tokenizer.json").read_text())
    tokenizer["version"] = "other"
    (moved / "tokenizer.json").write_text(json.dumps(tokenizer))
    statistics = json.loads((moved / "dataset_statistics.json").read_text())
    statistics["libero_test"]["action"]["q99"][0] += 0.1
    (moved / "dataset_statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(CheckpointError, match=r"differ in tokenizer\.json, how tokens become actions; only policies"):
        average_checkpoints([small_checkpoint, moved], [1.0, 1.0], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_networks_of_other_sizes_are_refused(small_checkpoint, acting_model, tokenizer_directory, tmp_path):
    config = acting_model.config
    deeper = replace(config, language=replace(config.language, layers=config.language.layers + 1))
    torch.manual_seed(0)
    save_checkpoint(
        OpenVLA.from_config(deeper),
        tmp_path / "deeper",
        tokenizer_directory=tokenizer_directory,
        statistics=statistics_json(),
    )
    with pytest.raises(CheckpointError, match="differ in the sizes of the network"):
        average_checkpoints([small_checkpoint, tmp_path / "deeper"], [1.0, 1.0], tmp_path / "mean")


def test_bad_arguments_are_named(small_checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"two policies or more and a positive share of each, got 1 and \[1\.0\]"):
        average_checkpoints([small_checkpoint], [1.0], tmp_path / "mean")
    with pytest.raises(ValueError, match=r"got 2 and \[1\.0, 0\.0\]"):
        average_checkpoints([small_checkpoint] * 2, [1.0, 0.0], tmp_path / "mean")
    with pytest.raises(ValueError, match="the same policy is given twice"):
        average_checkpoints([small_checkpoint] * 2, [1.0, 1.0], tmp_path / "mean")
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="is there already; choose a new directory"):
        average_checkpoints([small_checkpoint] * 2, [1.0, 1.0], tmp_path / "there")
