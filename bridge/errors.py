"""What can go wrong between a client and a server, and what to do about it.

A server refuses with a `Refusal`, which becomes an `Error` message. A client raises one exception class per remedy.
"""

from __future__ import annotations

from typing import NamedTuple

from bridge.messages import Error, ErrorCode, Stamp


class BridgeError(Exception):
    """Base of what a client raises.

    retryable: asking again, with a new observation, may succeed after `retry_after_s` seconds. hint: what to do.
    """

    def __init__(self, message: str, *, retryable: bool = False, retry_after_s: float = 0.0, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.hint = hint


class NoReplyError(BridgeError):
    """Nothing came within the timeout. Hold, then act on a new observation; the late reply will be dropped."""


class ServerNotReadyError(BridgeError):
    """No server there yet, or it is loading, full or closing. Wait, or start one."""


class SessionLostError(BridgeError):
    """The server restarted or forgot this session. The next call opens a new one, which has no history of the last."""


class RequestRefusedError(BridgeError):
    """The request itself is at fault. Change it; sending it again cannot help."""


class IncompatibleServerError(BridgeError):
    """Another protocol version or another policy than expected. Start the matching server or change the expectation."""


class PolicyFailedError(BridgeError):
    """The policy could not be loaded or raised an exception. Read the server's log."""


class Remedy(NamedTuple):
    """What the server advises for an error code, and what the client makes of it."""

    raises: type[BridgeError]
    retryable: bool = False
    retry_after_s: float = 0.0
    hint: str = ""


REMEDIES: dict[ErrorCode, Remedy] = {
    ErrorCode.WRONG_VERSION: Remedy(IncompatibleServerError, hint="install the same version on both ends"),
    ErrorCode.MALFORMED: Remedy(RequestRefusedError, hint="speak the protocol of bridge.messages"),
    ErrorCode.TOO_LARGE: Remedy(
        RequestRefusedError, hint="send a smaller picture, or raise the server's max_message_bytes"
    ),
    ErrorCode.BAD_IMAGE: Remedy(RequestRefusedError, hint="send an RGB picture of the size told in its header"),
    ErrorCode.NOT_READY: Remedy(ServerNotReadyError, True, 0.5, "wait until the policy is loaded"),
    ErrorCode.LOAD_FAILED: Remedy(PolicyFailedError, hint="read the server's log, then start it anew"),
    ErrorCode.SERVER_FULL: Remedy(
        ServerNotReadyError, True, 5.0, "close other clients, or raise the server's max_sessions"
    ),
    ErrorCode.UNKNOWN_SESSION: Remedy(SessionLostError, True, 0.0, "say hello, then reset"),
    ErrorCode.STALE_EPISODE: Remedy(SessionLostError, hint="a reset came after this request; act in the new episode"),
    ErrorCode.UNKNOWN_EPISODE: Remedy(SessionLostError, True, 0.0, "reset first; this episode was never started"),
    ErrorCode.SUPERSEDED: Remedy(NoReplyError, hint="a newer observation of this session took its place"),
    ErrorCode.BAD_OBSERVATION: Remedy(RequestRefusedError, hint="the policy cannot take this observation"),
    ErrorCode.POLICY_FAILED: Remedy(PolicyFailedError, True, 0.0, "read the server's log"),
    ErrorCode.CLOSING: Remedy(ServerNotReadyError, True, 1.0, "the server is shutting down; connect to the next one"),
}


class Refusal(ValueError):  # noqa: N818 - as much a reply as an error
    """Why a server does not serve a request. `stamp` is the request's, as far as it could be read."""

    def __init__(self, code: ErrorCode, message: str, stamp: Stamp) -> None:
        super().__init__(message)
        self.code = code
        self.stamp = stamp

    def reply(self) -> Error:
        remedy = REMEDIES[self.code]
        return Error(
            stamp=self.stamp,
            code=self.code,
            message=str(self),
            retryable=remedy.retryable,
            retry_after_s=remedy.retry_after_s,
            hint=remedy.hint,
        )


def raised_by(error: Error, endpoint: str) -> BridgeError:
    """The client's exception for a server's error."""
    return REMEDIES[error.code].raises(
        f"{endpoint}: {error.message}",
        retryable=error.retryable,
        retry_after_s=error.retry_after_s,
        hint=error.hint,
    )
