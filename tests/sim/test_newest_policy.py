"""Servers start with the first checkpoint, clients take them in turn, and nothing is left running."""

import re
import time
from pathlib import Path

import pytest

from bridge.client import PolicyClient
from sim.newest_policy import NewestPolicy


def save(checkpoint: Path) -> None:
    """What a training run does, as far as serving it without a model needs it."""
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "training_config.json").write_text("{}")


def wait_for_endpoint(newest: NewestPolicy) -> str:
    deadline = time.monotonic() + 60
    while not (endpoint := newest.endpoint()):
        assert time.monotonic() < deadline, "nothing is served within a minute"
        time.sleep(0.05)
    return endpoint


def test_servers_start_with_the_first_checkpoint_and_take_turns(tmp_path: Path):
    newest = NewestPolicy(tmp_path / "policy", tmp_path / "logs", devices=("cpu", "cpu"), arguments=("--fake",))
    try:
        assert newest.endpoint() == "", "there is no checkpoint yet"
        save(tmp_path / "policy")
        endpoints = {wait_for_endpoint(newest), newest.endpoint()}
        assert len(endpoints) == 2
        assert {newest.endpoint(), newest.endpoint()} == endpoints
        for endpoint in endpoints:
            with PolicyClient(endpoint) as client:
                client.reset()
    finally:
        processes = [server.process for server in newest._servers]
        newest.close()
    assert all(process.poll() is not None for process in processes)


def test_a_checkpoint_that_cannot_be_served_is_told_and_tried_again_three_times(tmp_path: Path, caplog):
    save(tmp_path / "policy")
    newest = NewestPolicy(tmp_path / "policy", tmp_path / "logs", arguments=("--max-batch", "0"))
    try:
        deadline = time.monotonic() + 60
        while "drives alone" not in caplog.text:
            assert newest.endpoint() == ""
            assert time.monotonic() < deadline, "still trying after a minute"
            time.sleep(0.05)
        assert newest.endpoint() == ""
        assert not newest._servers
    finally:
        newest.close()
    assert caplog.text.count("starting again") == 3
    assert re.search(r"ended with exit code 2: .*max_batch", caplog.text)


def test_settings_that_make_no_sense_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="name a device"):
        NewestPolicy(tmp_path, tmp_path, devices=())
