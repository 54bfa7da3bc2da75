"""What brings a policy up for the episodes that need it, and down again after the last of them.

Knows servers and on which device each one runs. Stays in the process that owns the workers, who only see the
`PolicySource` that comes of it. Knows nothing of episodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from policy.types import PolicySpec
from sim.server_process import ServerProcess
from sim.sources import PolicySource, RemotePolicy


class PolicyUnavailableError(RuntimeError):
    """A policy cannot be brought up, or has gone while it was needed; the message says why."""


class PolicyHost(Protocol):
    """Calls come in this order: `start` once, `source` again and again, `stop`, `close`; the last also without others.

    None of them but `close` may wait, since all workers would have to wait, too.
    """

    def spec(self) -> PolicySpec:
        """What the policy will be, before it is up: who made it, with which weights, statistics and decoder, and
        whether it is privileged. The rest may be missing.
        """

    def start(self) -> None:
        """Begins to bring the policy up."""

    def source(self) -> PolicySource | None:
        """Where workers get it from, None while it is coming up. Raises PolicyUnavailableError if it is gone."""

    def stop(self) -> None:
        """Begins to bring it down; nobody uses it any more."""

    def close(self) -> None:
        """Returns when it is down."""


class StandingPolicy:
    """A policy that is there without being brought up: somebody else's server, or one that each worker makes."""

    def __init__(self, source: PolicySource) -> None:
        self._source = source

    def spec(self) -> PolicySpec:
        """The source's, complete."""
        return self._source.spec()

    def start(self) -> None:
        """It is there."""

    def source(self) -> PolicySource:
        """The source given."""
        return self._source

    def stop(self) -> None:
        """It stays."""

    def close(self) -> None:
        """It stays."""


class Devices:
    """Devices that servers take turns on: each new one goes where the fewest run."""

    def __init__(self, names: Sequence[str]) -> None:
        if not names:
            raise ValueError("name at least one device for the policy servers, e.g. auto or cuda:0")
        self._servers = Counter(dict.fromkeys(names, 0))

    def take(self) -> str:
        """The device for one more server."""
        device = min(self._servers, key=self._servers.__getitem__)
        self._servers[device] += 1
        return device

    def give_back(self, device: str) -> None:
        """One server less there."""
        self._servers[device] -= 1


class ServerHost:
    """A policy server of its own process, on a device that is chosen when it starts.

    spec: what it is going to serve. arguments: of `scripts/serve_policy.py`, all but address and device.
    log: file for what it says.
    """

    def __init__(self, spec: PolicySpec, arguments: Sequence[str], devices: Devices, log: Path) -> None:
        self._spec, self._arguments, self._devices, self._log = spec, tuple(arguments), devices, log
        self._server: ServerProcess | None = None
        self._give_back: Callable[[], None] = lambda: None

    def spec(self) -> PolicySpec:
        """As given; device and number format are only known of what is up."""
        return self._spec

    def start(self) -> None:
        """Starts the process."""
        device = self._devices.take()
        self._server = ServerProcess(self._log, self._arguments, device)
        self._give_back = lambda: self._devices.give_back(device)

    def source(self) -> RemotePolicy | None:
        """The server's address once the policy is loaded. Raises PolicyUnavailableError once the process has ended."""
        assert self._server is not None, "start() first"
        if failure := self._server.failure():
            raise PolicyUnavailableError(f"{failure} (all that it said is in {self._log})")
        endpoint = self._server.endpoint()
        return RemotePolicy(endpoint) if endpoint else None

    def stop(self) -> None:
        """Asks the process to end."""
        if self._server is not None:
            self._server.stop()
            self._give_back()
            self._give_back = lambda: None

    def close(self) -> None:
        """Waits for its end."""
        self.stop()
        if self._server is not None:
            self._server.close()
