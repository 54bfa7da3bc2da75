"""A policy takes over newer weights in place, between two actions, and keeps the old ones where it cannot."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from policy.following import FollowingPolicy
from policy.openvla.checkpoint import checkpoint_hash, load_checkpoint, save_checkpoint
from policy.runtime import Policy
from policy.types import Observation

FRAME = Observation(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8), "pick up the bowl")


@pytest.fixture
def saved(small_checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_checkpoint, tmp_path / "policy")
    return tmp_path / "policy"


def newer(saved: Path, statistics: dict) -> None:
    """What a training run does with every save: other weights, and the folder is a new one."""
    model = load_checkpoint(saved, dtype=torch.float32)
    with torch.no_grad():
        model.language_model.lm_head.weight.copy_(model.language_model.lm_head.weight.flip(0))
    tokenizer = saved.with_name("tokenizer")
    shutil.copytree(saved, tokenizer, dirs_exist_ok=True)
    save_checkpoint(model, saved, tokenizer_directory=tokenizer, statistics=statistics)


@pytest.fixture
def statistics() -> dict:
    from small_openvla import statistics_json

    return statistics_json()


def test_newer_weights_take_over_at_the_next_action(saved: Path, statistics: dict):
    policy = Policy.load(saved, device="cpu", dtype="float32")
    weight = next(policy._running_decoder().model.language_model.parameters())
    following = FollowingPolicy(policy, saved, seconds=1e-9)
    before, first = following.act(FRAME), following.spec.checkpoint_hash
    newer(saved, statistics)
    after = following.act(FRAME)
    assert following.spec.checkpoint_hash == checkpoint_hash(saved) != first
    assert not np.array_equal(before.tokens, after.tokens)
    assert np.array_equal(after.tokens, Policy.load(saved, device="cpu", dtype="float32").act(FRAME).tokens)
    assert next(policy._running_decoder().model.language_model.parameters()) is weight, "recorded passes read there"


def test_before_its_time_and_without_anything_new_nothing_is_read(saved: Path, statistics: dict, monkeypatch):
    policy = Policy.load(saved, device="cpu", dtype="float32")
    patient, keen = FollowingPolicy(policy, saved, seconds=1e6), FollowingPolicy(policy, saved, seconds=1e-9)
    first = policy.spec.checkpoint_hash
    monkeypatch.setattr(policy, "renew", lambda checkpoint: pytest.fail("nothing is new"))
    keen.act(FRAME)
    newer(saved, statistics)
    patient.act(FRAME)
    assert policy.spec.checkpoint_hash == first


def test_weights_that_cannot_be_read_leave_the_old_ones(saved: Path, statistics: dict, caplog):
    policy = Policy.load(saved, device="cpu", dtype="float32")
    following = FollowingPolicy(policy, saved, seconds=1e-9)
    first = policy.spec.checkpoint_hash
    (saved / "model.safetensors").rename(saved / "gone")
    following.act(FRAME)
    assert policy.spec.checkpoint_hash == first
    assert "the old weights stay" in caplog.text


def test_another_network_is_told_once_and_acting_goes_on(saved: Path, small_checkpoint: Path, caplog, monkeypatch):
    policy = Policy.load(saved, device="cpu", dtype="float32")
    following = FollowingPolicy(policy, saved, seconds=1e-9)
    refusals: list[Path] = []

    def refuse(checkpoint: Path) -> None:
        refusals.append(checkpoint)
        raise ValueError("it cannot replace the weights")

    monkeypatch.setattr(policy, "renew", refuse)
    saved.rename(saved.with_name("old"))
    shutil.copytree(small_checkpoint, saved)
    for _ in range(3):
        following.act(FRAME)
    assert refusals == [saved]
    assert "the old weights stay: it cannot replace the weights" in caplog.text


def test_a_hub_id_is_not_followed(saved: Path):
    policy = Policy.load(saved, device="cpu", dtype="float32")
    with pytest.raises(ValueError, match="only a directory can be followed, which openvla/openvla-7b is not"):
        FollowingPolicy(policy, Path("openvla/openvla-7b"), seconds=1.0)


def test_following_and_joined_weights_exclude_each_other(saved: Path):
    script = Path(__file__).parents[2] / "scripts" / "serve_policy.py"
    options = ["--checkpoint", str(saved), "--follow", "1", "--acceleration", "joined", "--bind", "tcp://127.0.0.1:*"]
    ended = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "--acceleration joined joins them; leave out one of the two" in ended.stderr


def test_another_network_is_refused(saved: Path):
    policy = Policy.load(saved, device="cpu", dtype="float32")
    with pytest.raises(ValueError, match="cannot replace the weights"):
        policy.renew(Path(__file__).parents[2] / "policy" / "pretrained" / "libero")
    with pytest.raises(ValueError, match="every so many seconds"):
        FollowingPolicy(policy, saved, seconds=0)


def test_it_leaves_the_device_to_training_for_the_rest_of_the_time(saved: Path, monkeypatch):
    policy = Policy.load(saved, device="cpu", dtype="float32")
    following = FollowingPolicy(policy, saved, seconds=1e6, share=0.25)
    monkeypatch.setattr(policy, "act_batch", lambda observations, sessions: time.sleep(0.02) or ["action"])
    begun = time.monotonic()
    for _ in range(5):
        assert following.act(FRAME) == "action"
    assert time.monotonic() - begun >= 5 * 0.02 + 4 * 0.06


def test_after_a_slow_answer_nobody_waits_for_long(saved: Path, monkeypatch):
    policy = Policy.load(saved, device="cpu", dtype="float32")
    following = FollowingPolicy(policy, saved, seconds=1e6, share=0.1)
    monkeypatch.setattr(policy, "act_batch", lambda observations, sessions: time.sleep(0.3) or ["action"])
    following.act(FRAME)
    begun = time.monotonic()
    following.act(FRAME)
    assert 0.45 < time.monotonic() - begun < 2.5


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_an_impossible_share_is_refused(saved: Path, share: float):
    with pytest.raises(ValueError, match="share of the time"):
        FollowingPolicy(Policy.load(saved, device="cpu", dtype="float32"), saved, seconds=1.0, share=share)
