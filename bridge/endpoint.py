"""Which addresses a server may be bound to, and how a socket is secured.

An open port lets anyone on the network drive the robot's policy, so anything but this machine needs keys or an explicit
word.
"""

from __future__ import annotations

import ipaddress
from typing import Protocol

import zmq

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555"


class SocketSecurity(Protocol):
    """Sets up authentication and encryption (ZeroMQ CURVE) on a socket before it is bound or connected."""

    def apply(self, socket: zmq.Socket) -> None: ...


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


def check_bind(endpoint: str, security: SocketSecurity | None, insecure_bind: bool) -> None:
    """Raises `ValueError` where binding would let others in unauthenticated, or the endpoint is no endpoint."""
    transport, separator, address = endpoint.partition("://")
    if not separator or transport not in ("tcp", "ipc", "inproc") or not address:
        raise ValueError(f"{endpoint!r} is not an endpoint; write it like {DEFAULT_ENDPOINT} or ipc:///tmp/policy")
    if security is None and not insecure_bind and not is_local(endpoint):
        raise ValueError(
            f"{endpoint} can be reached from other machines and there are no keys: anyone there could use this policy. "
            f"Bind {DEFAULT_ENDPOINT}, give the server keys, or pass insecure_bind=True on a network you trust"
        )
