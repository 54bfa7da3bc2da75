"""Which addresses a server may be bound to, and how a socket is secured.

An open port lets anyone on the network drive the robot's policy, so anything but this machine needs keys or an explicit
word.
"""

from __future__ import annotations

import ipaddress
from typing import Protocol

import zmq

HEARTBEAT_INTERVAL_MS = 2_000
HEARTBEAT_TIMEOUT_MS = 10_000

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555"


class SocketSecurity(Protocol):
    """Sets up authentication and encryption (ZeroMQ CURVE) on a socket before it is bound or connected."""

    def apply(self, socket: zmq.SyncSocket) -> None: ...


def is_local(endpoint: str) -> bool:
    """True where only processes of this machine can reach the endpoint."""
    transport, _, address = endpoint.partition("://")
    if transport in ("ipc", "inproc"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host in ("localhost", "lo"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # "*" or the name of a network interface


def check_endpoint(endpoint: str) -> None:
    """Raises `ValueError` where the text is no address of ours."""
    transport, separator, address = endpoint.partition("://")
    has_port = transport != "tcp" or ":" in address
    if not (separator and address and has_port and transport in ("tcp", "ipc", "inproc")):
        raise ValueError(f"{endpoint!r} is not an endpoint; write it like {DEFAULT_ENDPOINT} or ipc:///tmp/policy")


def check_bind(endpoint: str, security: SocketSecurity | None, insecure_bind: bool) -> None:
    """Raises `ValueError` where binding would let other machines in unauthenticated."""
    check_endpoint(endpoint)
    if security is None and not insecure_bind and not is_local(endpoint):
        raise ValueError(
            f"{endpoint} can be reached from other machines and there are no keys: anyone there could use this policy. "
            f"Bind {DEFAULT_ENDPOINT}, give the server keys, or allow it (--insecure-bind) on a network you trust"
        )


def prepare_socket(socket: zmq.SyncSocket, linger_ms: int, security: SocketSecurity | None) -> None:
    """What both ends set before they bind or connect. `linger_ms`: how long `close` may still send."""
    socket.setsockopt(zmq.LINGER, linger_ms)
    # Answered by the other end's ZeroMQ thread itself: what falls silent is a machine or a cable, not a busy policy.
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_INTERVAL_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    if security is not None:
        security.apply(socket)
