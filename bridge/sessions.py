"""Who talks to a server, which episode each is in, and whose observation is next.

Pure bookkeeping without sockets, threads or clocks: the caller passes the time. Each session has one slot for an
observation; a newer one takes the slot of an older one. Slots are served in the order in which they were first filled,
so a client that floods the server waits its turn like any other.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from bridge.errors import Refusal
from bridge.jobs import Job
from bridge.messages import Act, ErrorCode, Goodbye, Limits, Stamp


@dataclass(slots=True)
class Session:
    """One client's conversation."""

    episode: int
    last_heard: float


class SessionTable:
    """Sessions, their observation slots, and the resets that go before them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sessions: dict[str, Session] = {}
        self._slots: dict[str, Job] = {}  # by session; a dict keeps the place of a key whose value is replaced
        self._resets: dict[str, Job] = {}  # by session, so that a flood of resets stays one

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def pending(self) -> int:
        """Jobs waiting for the policy."""
        return len(self._slots) + len(self._resets)

    def open(self, stamp: Stamp, now: float, at_work: Container[str] = ()) -> str:
        """Opens the session of a hello, or leaves it as it is if it is open already.

        at_work: sessions for which the policy is at work. Returns the session that had to make room, "" for none.

        Raises:
            Refusal: no name, or no place, and nobody silent for long enough to be taken for gone.
        """
        if not stamp.session:
            raise Refusal(ErrorCode.MALFORMED, "a hello needs a session name", stamp)
        if stamp.session in self._sessions:
            self._sessions[stamp.session].last_heard = now
            return ""
        evicted = ""
        if len(self._sessions) >= self._limits.max_sessions:
            evicted = self._longest_silent(now, at_work)
            if not evicted:
                raise Refusal(ErrorCode.SERVER_FULL, f"all {self._limits.max_sessions} sessions are taken", stamp)
            self.close(Job(b"", Goodbye(stamp=Stamp(evicted, 0, 0, 0.0)), now))
        self._sessions[stamp.session] = Session(stamp.episode, now)
        return evicted

    def submit(self, job: Job) -> list[Job]:
        """Queues an act or a reset; returns the jobs that it displaced.

        Raises:
            Refusal: the session is unknown, or the episode is not its current one (for a reset: not a newer one).
        """
        stamp = job.request.stamp
        session = self._sessions.get(stamp.session)
        if session is None:
            raise Refusal(ErrorCode.UNKNOWN_SESSION, f"session {stamp.session!r} is not open", stamp)
        session.last_heard = job.received_at
        if isinstance(job.request, Act):
            self._check_episode(session, stamp)
            displaced = self._slots.get(stamp.session)
            self._slots[stamp.session] = job
            return [] if displaced is None else [displaced]
        if stamp.episode <= session.episode:
            message = f"reset to episode {stamp.episode}, but episode {session.episode} is already running"
            raise Refusal(ErrorCode.STALE_EPISODE, message, stamp)
        session.episode = stamp.episode
        return self._queue_reset(job)

    def close(self, goodbye: Job) -> list[Job]:
        """Ends a session; the policy will be told to forget it. Returns the jobs that were still waiting."""
        known = self._sessions.pop(goodbye.request.stamp.session, None)
        return [] if known is None else self._queue_reset(goodbye)

    def idle(self, now: float) -> list[Stamp]:
        """Sessions not heard of for longer than the limit, except those whose answer is still owed."""
        limit = now - self._limits.session_idle_s
        return [
            Stamp(name, session.episode, 0, 0.0)
            for name, session in self._sessions.items()
            if session.last_heard < limit and name not in self._slots
        ]

    def _longest_silent(self, now: float, at_work: Container[str]) -> str:
        """Whoever may have crashed without a goodbye, "" for nobody; never one to whom an answer is owed."""
        limit = now - self._limits.evict_after_s
        silent = [
            (session.last_heard, name)
            for name, session in self._sessions.items()
            if session.last_heard < limit and not (name in self._slots or name in self._resets or name in at_work)
        ]
        return min(silent, default=(0.0, ""))[1]

    def take(self) -> list[Job]:
        """The next batch: all resets, then the observations that waited longest, at most one a session."""
        names = list(self._slots)[: self._limits.max_batch]
        batch = list(self._resets.values()) + [self._slots.pop(name) for name in names]
        self._resets.clear()
        return batch

    def is_current(self, stamp: Stamp) -> bool:
        """False where the session was closed or reset after the request was sent."""
        session = self._sessions.get(stamp.session)
        return session is not None and session.episode == stamp.episode

    def _queue_reset(self, job: Job) -> list[Job]:
        name = job.request.stamp.session
        displaced = [queue.pop(name) for queue in (self._resets, self._slots) if name in queue]
        self._resets[name] = job
        return [waiting for waiting in displaced if not isinstance(waiting.request, Goodbye)]

    @staticmethod
    def _check_episode(session: Session, stamp: Stamp) -> None:
        if stamp.episode < session.episode:
            message = f"observation of episode {stamp.episode}, but episode {session.episode} is running"
            raise Refusal(ErrorCode.STALE_EPISODE, message, stamp)
        if stamp.episode > session.episode:
            message = f"observation of episode {stamp.episode}, but only episode {session.episode} was started"
            raise Refusal(ErrorCode.UNKNOWN_EPISODE, message, stamp)
