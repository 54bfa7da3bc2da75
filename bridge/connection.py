"""A client's socket: sends one request at a time and returns only the reply that carries its stamp.

Knows sockets, time and stamps. Knows nothing of policies. While it waits it asks the server for its status, so that a
timeout can say whether the server is gone or busy.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import zmq

from bridge.codec import Payload, pack, unpack_reply
from bridge.endpoint import SocketSecurity, check_endpoint, prepare_socket
from bridge.errors import (
    REMEDIES,
    IncompatibleServerError,
    NoReplyError,
    Refusal,
    ServerNotReadyError,
    SessionLostError,
    raised_by,
)
from bridge.messages import Error, ErrorCode, Goodbye, Message, Reply, ServerState, Stamp, Status, StatusReply, Welcome

log = logging.getLogger(__name__)

# How often a waiting client asks for the server's state.
PROBE_INTERVAL_S = 0.5
# Replies are small; a server that sends more is none of ours.
MAX_REPLY_BYTES = 2**20
GOODBYE_LINGER_MS = 200

ReplyT = TypeVar("ReplyT", bound=Message)


class Connection:
    """A DEALER socket with a session, its episode and its sequence numbers. To be used by one thread.

    late_replies: replies that came after their request was given up, and were dropped.
    """

    def __init__(self, endpoint: str, security: SocketSecurity | None) -> None:
        check_endpoint(endpoint)
        self.endpoint = endpoint
        self.episode = 0
        self.late_replies = 0
        self._session = secrets.token_hex(16)
        self._sequence = 0
        self._instance = ""
        self._state: ServerState | None = None
        self._last_seen: float | None = None
        self._socket: zmq.SyncSocket = zmq.Context.instance().socket(zmq.DEALER)
        # Nothing is queued for a server that is not there: an observation must not wait for the next server to start.
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        prepare_socket(self._socket, GOODBYE_LINGER_MS, security)
        self._socket.connect(endpoint)

    def new_session(self) -> None:
        """Takes a new name, under which a server has no history of this client, and says goodbye under the old one."""
        self._say_goodbye()
        self._session, self.episode, self._instance = secrets.token_hex(16), 0, ""

    def request(
        self,
        build: Callable[[Stamp], Message],
        expected: type[ReplyT],
        timeout_s: float,
        *,
        payload: Payload | None = None,
        captured_at: float | None = None,
    ) -> ReplyT:
        """Sends what `build` makes of the next stamp and returns the reply to exactly that stamp.

        Raises:
            NoReplyError: nothing came in `timeout_s` seconds. ServerNotReadyError: there was nobody to send it to.
            SessionLostError: the server was restarted.
            BridgeError: what the server answered, see `bridge.errors.REMEDIES`.
        """
        deadline = time.monotonic() + timeout_s
        stamp = self._next_stamp(captured_at)
        message = build(stamp)
        frames: list[Payload] = [pack(message)] if payload is None else [pack(message), payload]
        self._send(frames, timeout_s)
        reply = self._await(stamp, deadline, timeout_s)
        if isinstance(reply, Error):
            raise raised_by(reply, self.endpoint)
        if not isinstance(reply, expected):
            raise IncompatibleServerError(
                f"{self.endpoint} answered {type(message).__name__} with {type(reply).__name__}",
                hint="install the same version on both ends",
            )
        return reply

    def close(self) -> None:
        try:
            self._say_goodbye()
        finally:
            self._socket.close()

    def describe_server(self) -> str:
        """What is known of the server, for error messages."""
        if self._last_seen is None:
            return "server never seen"
        return f"server last seen {time.monotonic() - self._last_seen:.1f} s ago, state {self._state}"

    def _say_goodbye(self) -> None:
        with suppress(zmq.Again):  # nobody there to say it to
            self._socket.send(pack(Goodbye(stamp=self._next_stamp())), zmq.NOBLOCK)

    def _next_stamp(self, captured_at: float | None = None) -> Stamp:
        self._sequence += 1
        captured_at = time.monotonic() if captured_at is None else captured_at
        return Stamp(self._session, self.episode, self._sequence, captured_at)

    def _send(self, frames: list[Payload], timeout_s: float) -> None:
        self._socket.setsockopt(zmq.SNDTIMEO, math.ceil(1e3 * timeout_s))
        try:
            self._socket.send_multipart(frames)
        except zmq.Again:
            raise ServerNotReadyError(
                f"no connection to {self.endpoint} in {timeout_s:.3g} s ({self.describe_server()})", retryable=True
            ) from None

    def _await(self, stamp: Stamp, deadline: float, timeout_s: float) -> Reply:
        """Receives until the reply to `stamp` is there; probes the server's state meanwhile."""
        probe_at = time.monotonic() + PROBE_INTERVAL_S
        while (now := time.monotonic()) < deadline:
            if now >= probe_at:
                probe_at = now + PROBE_INTERVAL_S
                self._probe()
            if not self._socket.poll(math.ceil(1e3 * (min(deadline, probe_at) - now))):
                continue
            reply = self._receive()
            if reply is None:
                continue
            if (reply.stamp.session, reply.stamp.sequence) == (stamp.session, stamp.sequence):
                return reply
            if not isinstance(reply, StatusReply):
                self.late_replies += 1
        raise NoReplyError(
            f"no reply in {timeout_s:.3g} s from {self.endpoint} ({self.describe_server()})", retryable=True
        )

    def _probe(self) -> None:
        try:
            self._socket.send(pack(Status(stamp=self._next_stamp())), zmq.NOBLOCK)
        except zmq.Again:
            log.debug("%s is not connected", self.endpoint)

    def _receive(self) -> Reply | None:
        """The next message, or None where it cannot be read. Notices when another server process is answering."""
        try:
            reply = unpack_reply(self._socket.recv_multipart(), MAX_REPLY_BYTES)
        except Refusal as refusal:
            if refusal.code == ErrorCode.WRONG_VERSION:
                hint = REMEDIES[refusal.code].hint
                raise IncompatibleServerError(f"{self.endpoint}: {refusal}", hint=hint) from refusal
            log.warning("%s sent something unreadable: %s", self.endpoint, refusal)
            return None
        self._last_seen = time.monotonic()
        if isinstance(reply, (Welcome, StatusReply)):
            self._state = reply.state
            known, self._instance = self._instance, reply.instance
            if known not in ("", reply.instance):  # raised once: who only asks for the status needs no new session
                raise SessionLostError(
                    f"{self.endpoint} was restarted", retryable=True, hint="the next call opens a new session"
                )
        return reply
