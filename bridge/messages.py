"""What may travel between a policy client and a policy server, as types that are validated when decoded.

Knows names, shapes and limits. Knows nothing of sockets or of how a frame is packed (`bridge.codec` does that).

Every message carries a `Stamp`, and a reply carries the stamp of the request it answers, unchanged. A client that
compares the stamp can therefore never take one request's reply for another's.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from msgspec import Meta, Struct

from policy.types import ACTION_NAMES, DecodeTrace, PolicySpec

PROTOCOL_VERSION = 1

MIN_IMAGE_SIDE, MAX_IMAGE_SIDE = 16, 4096
MAX_NAME_LENGTH = 128
MAX_HEADER_BYTES = 64 * 2**10
MIN_MESSAGE_BYTES = MAX_HEADER_BYTES + 224 * 224 * 3
MAX_INSTRUCTION_LENGTH = 4096

Name = Annotated[str, Meta(max_length=MAX_NAME_LENGTH)]
Count = Annotated[int, Meta(ge=0)]
ImageSide = Annotated[int, Meta(ge=MIN_IMAGE_SIDE, le=MAX_IMAGE_SIDE)]
Encoding = Literal["raw", "jpeg"]


class ServerState(StrEnum):
    """Loading and warming come before the first answer; ready and busy alternate; failed and closing are final."""

    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    BUSY = "busy"
    FAILED = "failed"
    CLOSING = "closing"


class ErrorCode(StrEnum):
    """Why a request was not answered with what it asked for."""

    WRONG_VERSION = "wrong_version"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    BAD_IMAGE = "bad_image"
    NOT_READY = "not_ready"
    LOAD_FAILED = "load_failed"
    SERVER_FULL = "server_full"
    UNKNOWN_SESSION = "unknown_session"
    STALE_EPISODE = "stale_episode"
    UNKNOWN_EPISODE = "unknown_episode"
    SUPERSEDED = "superseded"
    BAD_OBSERVATION = "bad_observation"
    POLICY_FAILED = "policy_failed"
    CLOSING = "closing"


class Stamp(Struct, frozen=True, forbid_unknown_fields=True):
    """Which request a message is, or answers.

    session: the client's own unguessable name for its conversation; "" only where a request could not be read.
    episode: grows with every reset; a request of an older episode is refused.
    sequence: grows with every message of the session, from 1; 0 marks an error about something unreadable.
    captured_at: seconds on the sender's monotonic clock. Opaque to the receiver, which echoes it and never compares it.
    """

    session: Name
    episode: Count
    sequence: Count
    captured_at: float


class Message(Struct, frozen=True, kw_only=True, tag_field="kind", forbid_unknown_fields=True):
    """Base of everything on the wire. version: the protocol that the sender speaks."""

    stamp: Stamp
    version: int = PROTOCOL_VERSION


class ImageHeader(Struct, frozen=True, forbid_unknown_fields=True):
    """Describes the payload frame of an `Act`: `shape` is `[H, W, 3]` of the picture, `size` the bytes of the frame."""

    encoding: Encoding
    shape: tuple[ImageSide, ImageSide, Literal[3]]
    size: Annotated[int, Meta(gt=0)]
    dtype: Literal["uint8"] = "uint8"

    def __post_init__(self) -> None:
        height, width, channels = self.shape
        expected = height * width * channels
        if self.encoding == "raw" and self.size != expected:
            raise ValueError(
                f"a raw uint8 image {height}x{width}x{channels} is {expected} bytes, its header says {self.size}"
            )


class Limits(Struct, frozen=True):
    """What a server accepts; told to the client in the handshake so that it can refuse before sending.

    max_message_bytes: header and payload together.
    max_sessions: conversations kept at a time.
    max_batch: most observations answered in one forward pass.
    session_idle_s: a conversation silent for this long is forgotten, in seconds.
    evict_after_s: the same where all places are taken and somebody else asks for one.
    """

    max_message_bytes: int = 16 * 2**20
    max_sessions: int = 256
    max_batch: int = 32
    session_idle_s: float = 900.0
    evict_after_s: float = 30.0

    def __post_init__(self) -> None:
        if self.max_message_bytes < MIN_MESSAGE_BYTES:
            raise ValueError(
                f"max_message_bytes is {self.max_message_bytes}; at least {MIN_MESSAGE_BYTES} are needed for a header "
                "and a raw 224x224 picture"
            )
        for name in ("max_sessions", "max_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("session_idle_s", "evict_after_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive and finite")


class Counters(Struct):
    """What a server has done since it started. stale: requests of an older episode. refused: all other refusals."""

    requests: int = 0
    actions: int = 0
    batches: int = 0
    largest_batch: int = 0
    superseded: int = 0
    stale: int = 0
    refused: int = 0
    policy_errors: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0


class ServerTiming(Struct, frozen=True):
    """Milliseconds of one action on the server's monotonic clock.

    queue_ms: from arrival until the policy took it up.
    decode_ms: unpacking the pictures of the batch.
    policy_ms: the policy's call for the whole batch; its own split is `DecodeTrace.stage_ms`.
    total_ms: from arrival until the reply was built.
    """

    queue_ms: float
    decode_ms: float
    policy_ms: float
    total_ms: float
    batch_size: int


class Hello(Message, frozen=True, tag="hello"):
    """Opens the session named in the stamp. Sent again (harmlessly) until the server is ready."""

    client: Name


class Act(Message, frozen=True, tag="act"):
    """Asks for one action; its image is the payload frame."""

    instruction: Annotated[str, Meta(min_length=1, max_length=MAX_INSTRUCTION_LENGTH)]
    image: ImageHeader


class Reset(Message, frozen=True, tag="reset"):
    """Starts the episode named in the stamp, which must be newer than the session's current one."""


class Status(Message, frozen=True, tag="status"):
    """Asks how the server is. Needs no session and is answered while the policy is busy."""


class Goodbye(Message, frozen=True, tag="goodbye"):
    """Ends the session. Not answered."""


class Welcome(Message, frozen=True, tag="welcome"):
    """Answers `Hello`. The session is open once `spec` is there; until then the state says what is waited for.

    instance: differs between two starts of a server, so that a restart is noticed.
    """

    instance: Name
    state: ServerState
    limits: Limits
    spec: PolicySpec | None

    def __post_init__(self) -> None:
        if self.spec is None and self.state in (ServerState.READY, ServerState.BUSY):
            raise ValueError(f"a server in state {self.state} must tell the policy's spec")


class ActionReply(Message, frozen=True, tag="action"):
    """Answers `Act`. Values and tokens as in `policy.types.Action`."""

    values: tuple[float, ...]
    tokens: tuple[int, ...]
    trace: DecodeTrace
    timing: ServerTiming

    def __post_init__(self) -> None:
        if len(self.values) != len(ACTION_NAMES):
            raise ValueError(f"an action has {len(ACTION_NAMES)} values {ACTION_NAMES}, got {len(self.values)}")


class ResetDone(Message, frozen=True, tag="reset_done"):
    """Answers `Reset`."""


class StatusReply(Message, frozen=True, tag="status_reply"):
    """Answers `Status`. busy_s: age of the batch that is running. pending: requests waiting for the policy."""

    instance: Name
    state: ServerState
    busy_s: float
    pending: int
    sessions: int
    uptime_s: float
    counters: Counters


class Error(Message, frozen=True, tag="error"):
    """Answers any request that could not be served. The traceback, if there is one, stays in the server's log.

    retryable: the same kind of request may succeed later, after `retry_after_s` seconds. hint: what to do about it.
    """

    code: ErrorCode
    message: str
    retryable: bool = False
    retry_after_s: float = 0.0
    hint: str = ""


Request = Hello | Act | Reset | Status | Goodbye
Reply = Welcome | ActionReply | ResetDone | StatusReply | Error
