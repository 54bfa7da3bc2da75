"""Servers on free ports and clients of them, closed after each test."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from raw_client import GatedPolicy, RawClient
from scripted_server import ScriptedServer

from bridge.client import PolicyClient
from bridge.server import PolicyServer


def lasting_endpoint() -> str:
    """A port that nobody takes between a server's end and its restart: below those given to outgoing connections.

    A client that knocks at a closed port of that range now and then connects to itself, and so occupies it.
    """
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return f"tcp://127.0.0.1:{port}"
    raise RuntimeError("no free port among a hundred")


def started(server: PolicyServer) -> PolicyServer:
    """Starts it where another one of this process may have been a moment ago: ZeroMQ frees a closed socket's port in a
    thread of its own.
    """
    for _ in range(100):
        with contextlib.suppress(OSError):
            return server.start()
        time.sleep(0.05)
    return server.start()


@pytest.fixture
def gated(serve: Callable[..., PolicyServer]) -> Iterator[GatedPolicy]:
    """Opens its gate after the test, before `serve` waits for the server to drain."""
    policy = GatedPolicy()
    yield policy
    policy.gate.set()


@pytest.fixture
def serve() -> Iterator[Callable[..., PolicyServer]]:
    """Starts servers that are closed after the test; ready where the policy is given and not its loader."""
    servers: list[PolicyServer] = []

    def start(policy: Any, endpoint: str = "", **settings: Any) -> PolicyServer:
        server = started(PolicyServer(policy, endpoint or lasting_endpoint(), **settings))
        servers.append(server)
        if not callable(policy):
            server.wait_ready(5)
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., RawClient]]:
    """Raw clients, in session unless told otherwise."""
    clients: list[RawClient] = []

    def start(server: PolicyServer, session: str = "s", greet: bool = True) -> RawClient:
        client = RawClient(server.endpoint, session)
        clients.append(client)
        if greet:
            client.hello()
        return client

    yield start
    for client in clients:
        client.close()


@pytest.fixture
def client_of() -> Iterator[Callable[..., PolicyClient]]:
    """Connects clients, to servers or endpoints, that are closed after the test."""
    clients: list[PolicyClient] = []

    def make(server: PolicyServer | ScriptedServer | str, **settings: Any) -> PolicyClient:
        endpoint = server if isinstance(server, str) else server.endpoint
        clients.append(PolicyClient(endpoint, **{"connect_timeout_s": 5.0} | settings))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
    """Starts servers that answer as a script says, and ends them after the test."""
    servers: list[ScriptedServer] = []

    def make(script: Callable[..., Any]) -> ScriptedServer:
        servers.append(ScriptedServer(script))
        return servers[-1]

    yield make
    for server in servers:
        server.stopping.set()
        server.join()
