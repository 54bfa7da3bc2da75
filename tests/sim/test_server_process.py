"""A server's address is told when it is ready, and how it ended once it has."""

import os
import time

import pytest

from bridge.client import PolicyClient
from sim.server_process import ServerProcess, _alone


def wait_until_ready(server: ServerProcess) -> str:
    deadline = time.monotonic() + 60
    while not (endpoint := server.endpoint()):
        assert time.monotonic() < deadline, "no server within a minute"
        time.sleep(0.05)
    return endpoint


def test_a_server_lives_until_it_is_killed(tmp_path):
    server = ServerProcess(tmp_path / "logs" / "log", ["--fake"])
    try:
        with PolicyClient(wait_until_ready(server)) as client:
            assert client.spec.policy_id == "fake"
        assert server.failure() == ""
        server.process.kill()
        server.process.wait()
        assert server.failure().startswith("a policy server ended with exit code -9: ready: fake")
    finally:
        server.close()


@pytest.mark.parametrize(
    ("visible", "device", "expected"),
    [
        (None, "cuda:2", ("cuda", "2")),
        ("4,5", "cuda:1", ("cuda", "5")),
        ("4", "cuda:1", ("cuda:1", "4")),
        ("4", "cpu", ("cpu", "4")),
    ],
)
def test_a_server_sees_its_own_gpu_only(monkeypatch, visible, device, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    named, environment = _alone(device)
    assert (named, environment["CUDA_VISIBLE_DEVICES"]) == expected
    assert environment["PATH"] == os.environ["PATH"]


def test_a_server_that_cannot_start_says_why(tmp_path):
    server = ServerProcess(tmp_path / "log", ["--fake", "--max-batch", "0"])
    with pytest.raises(RuntimeError, match=r"ended with exit code 2: .*max_batch"):
        wait_until_ready(server)
    server.close()
