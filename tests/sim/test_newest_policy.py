"""The newest checkpoint is served, the one before it until the next handover, and nothing is left running."""

import time
from pathlib import Path

import pytest

from bridge.client import PolicyClient
from sim.newest_policy import NewestPolicy


def save(checkpoint: Path, text: str) -> None:
    """What a training run does, as far as serving it without a model needs it."""
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "training_config.json").write_text(text)


def wait_for_version(newest: NewestPolicy, before: str) -> str:
    deadline = time.monotonic() + 60
    while (endpoint := newest.endpoint()) == before:
        assert time.monotonic() < deadline, "no new version within a minute"
        time.sleep(0.05)
    return endpoint


def test_versions_follow_each_other_without_a_gap(tmp_path):
    newest = NewestPolicy(tmp_path / "policy", tmp_path / "served", renew_seconds=0.1, arguments=("--fake",))
    try:
        assert newest.endpoint() == "", "there is no checkpoint yet"
        save(tmp_path / "policy", "1")
        first = wait_for_version(newest, "")
        with PolicyClient(first) as client:
            save(tmp_path / "policy", "2")
            second = wait_for_version(newest, first)
            client.reset()  # the first version still answers
        with PolicyClient(second) as client:
            client.reset()
        assert newest.versions == 2
        time.sleep(0.2)
        assert newest.endpoint() == second
        assert newest.versions == 2, "nothing newer was saved"
    finally:
        newest.close()
    assert list((tmp_path / "served").iterdir()) == []


def test_a_checkpoint_that_cannot_be_served_is_told(tmp_path):
    save(tmp_path / "policy", "no weights here")
    newest = NewestPolicy(tmp_path / "policy", tmp_path / "served")
    try:
        with pytest.raises(RuntimeError, match=r"ended with exit code 1: .*cannot be served"):
            wait_for_version(newest, "")
    finally:
        newest.close()
