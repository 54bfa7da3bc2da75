"""The server's side of the protocol: which request gets which answer, and what the policy is asked next.

Knows messages, sessions and counters. Knows no sockets and no threads: frames come in as arguments and answers go out
as return values, so everything here can be tested by calling it.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from typing import Protocol

from bridge.codec import Payload, pack, unpack_request
from bridge.errors import Refusal
from bridge.jobs import Job, Outcome
from bridge.messages import (
    Act,
    ActionReply,
    Counters,
    Error,
    ErrorCode,
    Goodbye,
    Hello,
    Limits,
    Message,
    Reset,
    ServerState,
    Stamp,
    Status,
    StatusReply,
    Welcome,
)
from bridge.sessions import SessionTable
from policy.types import PolicySpec

log = logging.getLogger(__name__)

Answer = tuple[bytes, bytes]  # the address of a client and a header frame for it


class WorkerView(Protocol):
    """What clients are told of the worker."""

    state: ServerState
    spec: PolicySpec | None
    failure: BaseException | None
    busy_since: float | None


class Dispatcher:
    """Answers what it can at once, queues what the policy must do, and checks outcomes before they leave."""

    def __init__(self, limits: Limits, worker: WorkerView, now: float) -> None:
        self.counters = Counters()
        self.closing = False
        self._limits = limits
        self._worker = worker
        self._started_at = now
        self._instance = secrets.token_hex(8)
        self._sessions = SessionTable(limits)
        self._out: list[Job] = []  # what the worker has; nothing else is given to it meanwhile

    @property
    def is_drained(self) -> bool:
        """True when nothing that was accepted is still to be answered."""
        return not self._out and self._sessions.pending == 0

    @property
    def state(self) -> ServerState:
        return ServerState.CLOSING if self.closing else self._worker.state

    def receive(self, address: bytes, frames: Sequence[Payload], now: float) -> list[Answer]:
        """Takes in one message and returns the answers that can be given at once."""
        self.counters.requests += 1
        self.counters.bytes_received += sum(len(frame) for frame in frames)
        try:
            request, payload = unpack_request(frames, self._limits.max_message_bytes)
            match request:
                case Status():
                    return [self._send(address, self._status(request.stamp, now))]
                case Hello():
                    return [self._send(address, self._welcome(request, now))]
                case Goodbye():
                    displaced = self._sessions.close(Job(address, request, now))
                case Act() | Reset():
                    self._check_open_for_work(request.stamp)
                    displaced = self._sessions.submit(Job(address, request, now, payload or b""))
        except Refusal as refusal:
            return [self._refuse(address, refusal)]
        return [self._refuse(job.address, _displaced(job, request)) for job in displaced]

    def finish(self, outcomes: Sequence[Outcome]) -> list[Answer]:
        """Takes back a batch from the worker and returns its answers."""
        self._out = []
        answers = []
        for outcome in outcomes:
            stamp = outcome.job.request.stamp
            if outcome.header is None:
                continue
            if isinstance(outcome.reply, ActionReply) and not self._sessions.is_current(stamp):
                refusal = Refusal(ErrorCode.STALE_EPISODE, "its episode ended while the policy was at work", stamp)
                answers.append(self._refuse(outcome.job.address, refusal))
                continue
            self.counters.actions += isinstance(outcome.reply, ActionReply)
            self.counters.policy_errors += isinstance(outcome.reply, Error)
            self.counters.bytes_sent += len(outcome.header)
            answers.append((outcome.job.address, outcome.header))
        return answers

    def next_batch(self, now: float) -> list[Job]:
        """What the worker shall do now; empty while it has a batch already, or when nothing waits."""
        if self._out:
            return []
        for stamp in self._sessions.idle(now):
            log.info("session %s was idle for %.0f s and is closed", stamp.session, self._limits.session_idle_s)
            self._sessions.close(Job(b"", Goodbye(stamp=stamp), now))
        batch = self._sessions.take()
        if batch:
            observations = sum(isinstance(job.request, Act) for job in batch)
            self._out = batch
            self.counters.batches += observations > 0
            self.counters.largest_batch = max(self.counters.largest_batch, observations)
        return batch

    def give_up(self) -> list[Answer]:
        """What everyone is told who still waits for a policy that has failed."""
        waiting, self._out = self._out, []
        while batch := self._sessions.take():
            waiting += batch
        return [
            self._refuse(job.address, self._failed(job.request.stamp))
            for job in waiting
            if not isinstance(job.request, Goodbye)
        ]

    def _welcome(self, hello: Hello, now: float) -> Welcome:
        self._check_not_failed(hello.stamp)
        spec = self._worker.spec
        if spec is not None:
            at_work = {job.request.stamp.session for job in self._out}
            if evicted := self._sessions.open(hello.stamp, now, at_work):
                log.info("session %s was silent, all places are taken, and it makes room", evicted)
        return Welcome(stamp=hello.stamp, instance=self._instance, state=self.state, limits=self._limits, spec=spec)

    def _status(self, stamp: Stamp, now: float) -> StatusReply:
        busy_since = self._worker.busy_since
        return StatusReply(
            stamp=stamp,
            instance=self._instance,
            state=self.state,
            busy_s=0.0 if busy_since is None else max(0.0, now - busy_since),
            pending=self._sessions.pending,
            sessions=len(self._sessions),
            uptime_s=now - self._started_at,
            counters=self.counters,
        )

    def _check_not_failed(self, stamp: Stamp) -> None:
        if self.closing:
            raise Refusal(ErrorCode.CLOSING, "the server is closing", stamp)
        if self._worker.failure is not None:
            raise self._failed(stamp)

    def _check_open_for_work(self, stamp: Stamp) -> None:
        self._check_not_failed(stamp)
        if self._worker.spec is None:
            raise Refusal(ErrorCode.NOT_READY, f"the policy is {self._worker.state}", stamp)

    def _failed(self, stamp: Stamp) -> Refusal:
        failure = self._worker.failure
        code, what = ErrorCode.LOAD_FAILED, "did not load"
        if self._worker.spec is not None:
            code, what = ErrorCode.POLICY_FAILED, "has failed for good; its server ends"
        return Refusal(code, f"the policy {what}: {type(failure).__name__}: {failure}", stamp)

    def _send(self, address: bytes, message: Message) -> Answer:
        header = pack(message)
        self.counters.bytes_sent += len(header)
        return address, header

    def _refuse(self, address: bytes, refusal: Refusal) -> Answer:
        match refusal.code:
            case ErrorCode.SUPERSEDED:
                self.counters.superseded += 1
            case ErrorCode.STALE_EPISODE:
                self.counters.stale += 1
            case _:
                self.counters.refused += 1
        return self._send(address, refusal.reply())


def _displaced(job: Job, by: Act | Reset | Goodbye) -> Refusal:
    stamp = job.request.stamp
    if isinstance(by, Act):
        return Refusal(ErrorCode.SUPERSEDED, f"observation {stamp.sequence} gave way to {by.stamp.sequence}", stamp)
    return Refusal(ErrorCode.STALE_EPISODE, f"episode {stamp.episode} ended before its turn came", stamp)
