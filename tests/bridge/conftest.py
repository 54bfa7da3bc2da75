"""Servers on free ports and clients of them, closed after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from raw_client import FREE_PORT, GatedPolicy, RawClient

from bridge.server import PolicyServer


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

    def start(policy: Any, endpoint: str = FREE_PORT, **settings: Any) -> PolicyServer:
        server = PolicyServer(policy, endpoint, **settings).start()
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
