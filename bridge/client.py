"""A policy that runs elsewhere: the `ActionPolicy` of a robot or simulator that talks to a `bridge.server`.

Needs numpy, pyzmq, msgspec and Pillow; no torch. Knows sessions, episodes and timeouts. Never sends an observation
twice: what could not be answered in time is an exception, and what to do then is the control loop's decision.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Self, get_args

import numpy as np

from bridge.codec import encode_image
from bridge.connection import Connection, ReplyT
from bridge.endpoint import DEFAULT_ENDPOINT, SocketSecurity
from bridge.errors import (
    IncompatibleServerError,
    NoReplyError,
    RequestRefusedError,
    ServerNotReadyError,
    SessionLostError,
)
from bridge.messages import (
    MAX_HEADER_BYTES,
    Act,
    ActionReply,
    Encoding,
    Hello,
    Limits,
    Message,
    Reset,
    ResetDone,
    ServerTiming,
    Stamp,
    Status,
    StatusReply,
    Welcome,
)
from policy.types import ACTION_NAMES, Action, Observation, PolicySpec

log = logging.getLogger(__name__)

# Waiting for a welcome, in seconds: short at first, longer for a server that is slow to answer at all.
FIRST_HELLO_S, LONGEST_HELLO_S = 0.5, 8.0
# How often a server that is still loading is asked again, in seconds.
LOADING_INTERVAL_S = 0.2
# What may differ between two servers of the same policy. Of the dtype that is the format of the numbers, not what
# comes after its comma: layers that were quantised.
INCIDENTAL_FIELDS = frozenset({"device", "dtype", "versions"})
QUANTISED = "quantised layers"


@dataclass(frozen=True, slots=True)
class ActTiming:
    """Where the milliseconds of one `act` went. Each clock is only compared with itself.

    round_trip_ms: the whole call, on this process's clock. encode_ms: packing the picture, part of it.
    server: the server's own account. stage_ms: the policy's, part of `server.policy_ms`.
    """

    round_trip_ms: float
    encode_ms: float
    server: ServerTiming
    stage_ms: dict[str, float]

    @property
    def network_ms(self) -> float:
        """What neither packing nor the server account for: sockets, wires, thread switches."""
        return self.round_trip_ms - self.encode_ms - self.server.total_ms


class PolicyClient:
    """A connection to one policy server, usable by the thread that made it.

    timeout_s: the longest an `act` may take.
    connect_timeout_s: the longest that connecting to a server, which may still be loading, and `reset` may take.
    encoding: "raw" sends pixels; "jpeg" sends a tenth of the bytes and changes the pixels a little.
    expect: fields of `PolicySpec` that the server's policy must have, or a whole spec. Of a spec, device and versions
        may differ, and dtype up to its comma: a spec of "float32", as by default, or "bfloat16" goes with both, but not
        with "bfloat16, fp8 layers". Its decoding_digest counts unless empty; its decoder always does. A server that is
        restarted must have the same digest, too, empty or not.
    on_progress: is told in words what is being waited for.

    Raises:
        ValueError: a timeout, encoding or quality that cannot be.
        ServerNotReadyError: no ready server within `connect_timeout_s`.
        IncompatibleServerError: not the expected policy or protocol.
        PolicyFailedError: the server could not load its policy.
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        timeout_s: float = 2.0,
        connect_timeout_s: float = 120.0,
        encoding: Encoding = "raw",
        jpeg_quality: int = 95,
        expect: PolicySpec | Mapping[str, Any] | None = None,
        name: str = "policy-client",
        security: SocketSecurity | None = None,
        on_progress: Callable[[str], None] = log.info,
    ) -> None:
        self.timeout_s = _positive_seconds("timeout_s", timeout_s)
        self.connect_timeout_s = _positive_seconds("connect_timeout_s", connect_timeout_s)
        if encoding not in get_args(Encoding):
            raise ValueError(f"encoding is {encoding!r}; choose one of {get_args(Encoding)}")
        if not 1 <= jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality is {jpeg_quality}; it must be 1..100")
        self.endpoint = endpoint
        self.act_timing: ActTiming | None = None
        self.reconnects = 0
        self._encoding: Encoding = encoding
        self._jpeg_quality = jpeg_quality
        self._expected = {"action_names": ACTION_NAMES} | _expectation(expect)
        self._name = name
        self._on_progress = on_progress
        self._owner = threading.get_ident()
        self._connection: Connection | None = Connection(endpoint, security)
        self._limits = Limits()
        self._is_open = False
        try:
            self._spec = self._open(self._connection, self.connect_timeout_s)
        except BaseException:
            self.close()
            raise
        # A server that is restarted must bring the same policy, decoded in the same way.
        self._expected |= _expectation(self._spec) | {"decoding_digest": self._spec.decoding_digest}

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    @property
    def late_replies(self) -> int:
        """Replies that came after their request had timed out, and were dropped."""
        return self._use().late_replies

    def reset(self) -> None:
        """Starts a new episode at the server, first in a new session if the last was lost. Raises `BridgeError`."""
        connection = self._use()
        if self._is_open:
            # Between episodes there is nothing to lose: only a reset is ever repeated without asking.
            with suppress(SessionLostError):
                self._begin_episode(connection)
                return
        self._reopen(connection, self.connect_timeout_s)
        self._begin_episode(connection)

    def act(self, observation: Observation) -> Action:
        """The policy's action for one observation.

        Raises:
            NoReplyError, ServerNotReadyError: not in time; hold and go on with a new observation.
            SessionLostError: the server lost this episode's history; the next call opens a new session.
            RequestRefusedError, PolicyFailedError: see their hints.
        """
        connection = self._use()
        deadline = time.monotonic() + self.timeout_s
        if not self._is_open:
            self._reopen(connection, self.timeout_s)
        started = time.perf_counter()
        header, payload = encode_image(observation.image, self._encoding, self._jpeg_quality)
        encoded = time.perf_counter()
        limit = self._limits.max_message_bytes
        if header.size + MAX_HEADER_BYTES > limit:
            raise RequestRefusedError(
                f"{self.endpoint} takes {limit} bytes a message; this image has {header.size} and its header may have "
                f"{MAX_HEADER_BYTES}",
                hint="send a smaller picture, or raise the server's max_message_bytes",
            )
        reply = self._ask(
            lambda stamp: Act(stamp=stamp, instruction=observation.instruction, image=header),
            ActionReply,
            max(deadline - time.monotonic(), 1e-3),
            payload=payload,
            captured_at=observation.captured_at,
        )
        action = Action(np.array(reply.values, np.float32), np.array(reply.tokens, np.int64), reply.trace)
        self.act_timing = ActTiming(
            round_trip_ms=1e3 * (time.perf_counter() - started),
            encode_ms=1e3 * (encoded - started),
            server=reply.timing,
            stage_ms=reply.trace.stage_ms,
        )
        return action

    def status(self) -> StatusReply:
        """The server's state and counters; answered also while its policy is busy.

        Raises:
            NoReplyError, ServerNotReadyError: not in time.
            SessionLostError: the server was restarted; told once, and the next call is answered by the new one.
        """
        return self._ask(lambda stamp: Status(stamp=stamp), StatusReply, self.timeout_s)

    def close(self) -> None:
        """Says goodbye and closes the socket; a second call does nothing."""
        self._check_thread()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _use(self) -> Connection:
        self._check_thread()
        if self._connection is None:
            raise RuntimeError(f"this client of {self.endpoint} is closed; make a new one")
        return self._connection

    def _check_thread(self) -> None:
        if threading.get_ident() != self._owner:
            raise RuntimeError(
                f"this client of {self.endpoint} belongs to the thread that made it; make one client in each thread"
            )

    def _begin_episode(self, connection: Connection) -> None:
        connection.episode += 1
        self._ask(lambda stamp: Reset(stamp=stamp), ResetDone, self.connect_timeout_s)

    def _ask(self, build: Callable[[Stamp], Message], expected: type[ReplyT], timeout_s: float, **more: Any) -> ReplyT:
        """As `Connection.request`; remembers where the session was lost."""
        try:
            return self._use().request(build, expected, timeout_s, **more)
        except SessionLostError:
            self._is_open = False
            raise

    def _reopen(self, connection: Connection, timeout_s: float) -> None:
        connection.new_session()
        self._spec = self._open(connection, timeout_s)
        self.reconnects += 1

    def _open(self, connection: Connection, timeout_s: float) -> PolicySpec:
        """Says hello until the server is ready, then checks that it is the expected one."""
        deadline = time.monotonic() + timeout_s
        patience = FIRST_HELLO_S
        while (left := deadline - time.monotonic()) > 0:
            try:
                welcome = connection.request(
                    lambda stamp: Hello(stamp=stamp, client=self._name), Welcome, min(patience, left)
                )
            except SessionLostError as lost:  # restarted between two hellos
                connection.new_session()
                self._on_progress(str(lost))
                continue
            except (NoReplyError, ServerNotReadyError) as waiting:
                patience = min(2 * patience, LONGEST_HELLO_S)
                self._on_progress(str(waiting))
                continue
            if welcome.spec is not None:
                self._check_spec(welcome.spec)
                self._limits = welcome.limits
                self._is_open = True
                return welcome.spec
            self._on_progress(f"{self.endpoint} is {welcome.state}, {left:.0f} s left")
            time.sleep(min(LOADING_INTERVAL_S, left))
        raise ServerNotReadyError(
            f"no ready policy at {self.endpoint} in {timeout_s:.3g} s ({connection.describe_server()})", retryable=True
        )

    def _check_spec(self, spec: PolicySpec) -> None:
        found = _comparable(spec)
        differing = [
            f"{field}: expected {value!r}, server has {found[field]!r}"
            for field, value in self._expected.items()
            if found[field] != value
        ]
        if differing:
            raise IncompatibleServerError(
                f"{self.endpoint} serves another policy than expected: {'; '.join(differing)}",
                hint="start the matching server or change what is expected",
            )


def _expectation(expect: PolicySpec | Mapping[str, Any] | None) -> dict[str, Any]:
    fields = PolicySpec.__dataclass_fields__.keys()
    if isinstance(expect, PolicySpec):
        unsaid = INCIDENTAL_FIELDS if expect.decoding_digest else INCIDENTAL_FIELDS | {"decoding_digest"}
        return {name: value for name, value in _comparable(expect).items() if name not in unsaid}
    unknown = set(expect or ()) - fields
    if unknown:
        raise ValueError(f"a policy has no {sorted(unknown)}; expect some of {sorted(fields)}")
    return dict(expect or {})


def _comparable(spec: PolicySpec) -> dict[str, Any]:
    """Its fields, and what its dtype says of quantised layers, "" for none: "fp8 layers" of "bfloat16, fp8 layers"."""
    return asdict(spec) | {QUANTISED: spec.dtype.partition(", ")[2]}


def _positive_seconds(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; it must be a positive, finite number of seconds")
    return float(value)
