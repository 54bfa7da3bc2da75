"""What passes between a server's I/O thread and its policy worker."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.codec import Payload
from bridge.messages import Act, ActionReply, Error, Goodbye, Reset, ResetDone


@dataclass(frozen=True, slots=True)
class Job:
    """Something for the policy to do. address: where the answer goes. received_at: monotonic seconds."""

    address: bytes
    request: Act | Reset | Goodbye
    received_at: float
    payload: Payload = b""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A job and its answer, also packed as a header frame; both are None where nobody waits for one."""

    job: Job
    reply: ActionReply | ResetDone | Error | None
    header: bytes | None
