"""Serves the newest checkpoint of a training run, for dataset aggregation.

Knows checkpoint folders and when to change servers; nothing of training, simulators or networks.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from sim.server_process import ServerProcess


@dataclass(slots=True)
class _Version:
    """One checkpoint, copied since training overwrites it, and the servers that hold it."""

    directory: Path
    stamp: int
    started: float
    servers: list[ServerProcess]

    def ready(self) -> bool:
        return all(server.endpoint() for server in self.servers)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()
        for server in self.servers:
            server.close()
        shutil.rmtree(self.directory)


class NewestPolicy:
    """Hands over from one version of a checkpoint to the next without a gap.

    checkpoint: folder that training saves to. served: folder for copies and logs of the servers.
    renew_seconds: how old a version may get before a newer one, if there is one, takes over.
    servers: processes per version, each with its clients; one process preprocesses for some ten clients.
    arguments: further ones for `scripts/serve_policy.py`.

    The version before the last stays up until the next handover, so that episodes under way can end with it.
    """

    def __init__(
        self,
        checkpoint: Path,
        served: Path,
        *,
        renew_seconds: float = 60.0,
        servers: int = 1,
        arguments: tuple[str, ...] = (),
    ) -> None:
        if servers < 1 or renew_seconds <= 0:
            raise ValueError(f"servers must be at least 1 and renew_seconds positive, got {servers}, {renew_seconds}")
        self._checkpoint, self._served = checkpoint, served
        self._renew_seconds, self._servers, self._arguments = renew_seconds, servers, list(arguments)
        self._next: _Version | None = None
        self._current: _Version | None = None
        self._previous: _Version | None = None
        self._turn = 0
        self.versions = 0

    def endpoint(self) -> str:
        """Where a policy can be reached now, "" before the first is ready. Call it often: it starts and ends servers.

        Raises RuntimeError, with what the server said, if a new version cannot be served.
        """
        if self._next is not None and self._next.ready():
            self._hand_over()
        if self._next is None and self._due():
            self._launch()
        if self._current is None:
            return ""
        self._turn += 1
        return self._current.servers[self._turn % self._servers].endpoint()

    def close(self) -> None:
        """Ends all servers."""
        for version in (self._next, self._current, self._previous):
            if version is not None:
                version.stop()
        self._next = self._current = self._previous = None

    def _stamp(self) -> int:
        """Changes with every checkpoint, 0 before the first. The configuration beside the weights is saved last."""
        try:
            return (self._checkpoint / "training_config.json").stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _due(self) -> bool:
        stamp, current = self._stamp(), self._current
        if current is None:
            return stamp > 0
        return stamp != current.stamp and time.monotonic() - current.started > self._renew_seconds

    def _launch(self) -> None:
        self.versions += 1
        stamp, directory = self._stamp(), self._served / f"{os.getpid()}-{self.versions}"
        shutil.copytree(self._checkpoint, directory)
        logs = [directory / f"server-{number}.log" for number in range(self._servers)]
        servers = [ServerProcess(log, ["--checkpoint", str(directory), *self._arguments]) for log in logs]
        self._next = _Version(directory, stamp, time.monotonic(), servers)

    def _hand_over(self) -> None:
        if self._previous is not None:
            self._previous.stop()
        self._previous, self._current, self._next = self._current, self._next, None
