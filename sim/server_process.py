"""A policy server in a process of its own: `scripts/serve_policy.py` on a free port of this machine.

Knows the command, what the server says when it is ready, and how to end it. Knows nothing of policies or clients.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_SERVE = Path(__file__).resolve().parent.parent / "scripts" / "serve_policy.py"
_READY = re.compile(r"^ready: .* at (tcp://\S+)$", re.MULTILINE)
# A server answers what it has accepted before it ends; one that takes longer than this is killed.
_PATIENCE_S = 20.0
_CUDA_DEVICE = re.compile(r"cuda:(\d+)")
_ERROR = re.compile(r"^.*(?:Error|error: |cannot ).*$", re.MULTILINE)


class ServerProcess:
    """Starts at once and is ready some seconds later. Ends with the process that made it, even if that is killed.

    log: file for what the server says, made anew. arguments: of `scripts/serve_policy.py`, all but address and device.
    device: "auto", "cpu", "cuda" or "cuda:N"; the server sees no other GPU than that one, so it takes none of theirs.
    """

    def __init__(self, log: Path, arguments: Sequence[str], device: str = "auto") -> None:
        self._log = log
        self._endpoint = ""
        log.parent.mkdir(parents=True, exist_ok=True)
        device, environment = _alone(device)
        # -P: what lies in the current directory is not to be imported.
        command = [sys.executable, "-P", "-m", "bridge.lifeline", str(_SERVE)]
        command += ["--bind", "tcp://127.0.0.1:*", "--device", device, *arguments]
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT, env=environment
            )

    def endpoint(self) -> str:
        """Where it listens, "" before it is ready. Raises RuntimeError if it has ended before that."""
        if not self._endpoint:
            if match := _READY.search(self._log.read_text()):
                self._endpoint = match.group(1)
            elif failure := self.failure():
                raise RuntimeError(failure)
        return self._endpoint

    def failure(self) -> str:
        """How it ended, with its last error or else the last that it said; "" while it runs."""
        if self.process.poll() is None:
            return ""
        said = self._log.read_text().strip()
        last = (_ERROR.findall(said) or said.rsplit("\n", 1))[-1]
        return f"a policy server ended with exit code {self.process.returncode}: {last}"

    def stop(self) -> None:
        """Asks it to end and returns at once."""
        self.process.terminate()

    def close(self) -> None:
        """Ends it and waits until it is gone."""
        self.process.terminate()
        try:
            self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


def _alone(device: str) -> tuple[str, dict[str, str]]:
    """The device's name where it is the only GPU that is visible, and the environment that makes it so."""
    environment = dict(os.environ)
    if not (named := _CUDA_DEVICE.fullmatch(device)):
        return device, environment
    number = int(named.group(1))
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if visible == [""]:
        visible = [str(each) for each in range(number + 1)]
    if number >= len(visible):
        return device, environment  # the server says that there is no such device
    return "cuda", environment | {"CUDA_VISIBLE_DEVICES": visible[number]}
