"""Serves the newest checkpoint of a training run, for dataset aggregation.

Knows when there is a checkpoint to serve; the servers themselves follow the newer ones. Knows nothing of training,
simulators or networks.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sim.server_process import ServerProcess

_MOST_CLIENTS = 64  # in one forward pass of a server
_RESTARTS = 3

_log = logging.getLogger(__name__)


class NewestPolicy:
    """Policy servers that start with the first checkpoint and take over the weights of every later one in place.

    A process on a GPU waits for the others there at each of its many small passes, so one server of all clients is
    much faster than several on one GPU; more than one pay only on devices of their own.

    checkpoint: folder that training saves to. logs: folder for what the servers say.
    renew_seconds: how often they look for newer weights. devices: one server on each, clients take them in turn.
    arguments: further ones for `scripts/serve_policy.py`.
    """

    def __init__(
        self,
        checkpoint: Path,
        logs: Path,
        *,
        renew_seconds: float = 30.0,
        devices: tuple[str, ...] = ("auto",),
        arguments: tuple[str, ...] = (),
    ) -> None:
        if not devices or renew_seconds <= 0:
            raise ValueError(f"name a device and give positive renew_seconds, got {devices} and {renew_seconds}")
        self._checkpoint, self._logs, self._devices = checkpoint, logs, devices
        common = ("--checkpoint", checkpoint, "--follow", renew_seconds, "--max-batch", _MOST_CLIENTS)
        self._arguments = (*map(str, common), *arguments)
        self._servers: list[ServerProcess] = []
        self._turn = 0
        self._restarts = 0

    def endpoint(self) -> str:
        """Where a policy can be reached now, "" before the servers are ready. Call it often: it starts them, again
        where one has ended, and after three restarts no more: training on what the expert does goes on.
        """
        # Training writes its configuration last, so the first checkpoint is whole when that is there.
        if not self._servers and self._restarts <= _RESTARTS and (self._checkpoint / "training_config.json").exists():
            self._servers = [
                ServerProcess(self._logs / f"server-{number}.log", self._arguments, device)
                for number, device in enumerate(self._devices)
            ]
        failures = [failure for server in self._servers if (failure := server.failure())]
        if failures:
            self._restarts += 1
            what = "starting again" if self._restarts <= _RESTARTS else "the expert drives alone from now on"
            _log.warning("%s; %s", failures[0], what)
            self.close()
            return ""
        try:
            endpoints = [server.endpoint() for server in self._servers]
        except RuntimeError:  # one has ended just now, which the next call sees
            return ""
        if not endpoints or not all(endpoints):
            return ""
        self._turn += 1
        return endpoints[self._turn % len(endpoints)]

    def close(self) -> None:
        """Ends all servers."""
        for server in self._servers:
            server.stop()
        for server in self._servers:
            server.close()
        self._servers = []
