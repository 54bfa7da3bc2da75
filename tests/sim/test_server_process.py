"""A server's address is told when it is ready, and how it ended once it has."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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


PARENT = """
import sys, threading, time
from pathlib import Path
from sim.server_process import ServerProcess

made = []
maker = threading.Thread(target=lambda: made.append(ServerProcess(Path(sys.argv[1]), ["--fake"])))
maker.start()
maker.join()
while not made[0].endpoint():
    time.sleep(0.05)
print(made[0].process.pid, made[0].endpoint(), flush=True)
time.sleep(60)
"""


def runs(pid: int) -> bool:
    """False also for what has ended and is still to be reaped."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_server_outlives_the_thread_but_not_the_process_that_made_it(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as parent:
        pid, endpoint = parent.stdout.readline().split()
        try:
            with PolicyClient(endpoint) as client:
                assert client.spec.policy_id == "fake"
            parent.kill()
            parent.wait()
            deadline = time.monotonic() + 15
            while runs(int(pid)):
                assert time.monotonic() < deadline, "the server is still there"
                time.sleep(0.05)
        finally:
            if runs(int(pid)):
                os.kill(int(pid), signal.SIGKILL)


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
