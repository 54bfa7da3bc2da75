"""The one thread that touches the policy: loads it, runs batches of jobs, hands back replies.

Knows what a policy is asked and how long it took. Knows nothing of sockets or sessions. Whatever a picture or the
policy raises becomes an `Error` reply; the traceback goes to the log and nowhere else. What ends the thread all the
same is kept in `PolicyWorker.failure`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from bridge.codec import decode_image, pack
from bridge.errors import Refusal
from bridge.jobs import Job, Outcome
from bridge.messages import Act, ActionReply, Error, ErrorCode, Reset, ResetDone, ServerState, ServerTiming
from policy.types import Action, DeviceLostError, Observation, PolicySpec

log = logging.getLogger(__name__)


@runtime_checkable
class ServedPolicy(Protocol):
    """A policy that keeps several conversations apart by name.

    `act_batch(observations, sessions)`, where it has one, is given all waiting observations at
    once, each of another session. `rest()`, where it has one, is called when nobody has asked for a while.
    """

    @property
    def spec(self) -> PolicySpec: ...

    def reset(self, session: str = "") -> None: ...

    def act(self, observation: Observation, session: str = "") -> Action: ...

    def close(self) -> None: ...


# Seconds without a request after which a policy may rest. Less than between two requests of a robot, more than between
# those of simulators that stand in a row.
_QUIET = 0.001

ReportState = Callable[[str], None]
PolicyLoader = Callable[[ReportState], ServedPolicy]


class PolicyWorker(threading.Thread):
    """Runs `load` once, then batch after batch.

    load: returns the policy; is given a function to name its steps with: "loading", then anything else for warming.
    changed: called on this thread after every change of state and with the outcomes of every batch.
    failure: why the state is failed: what the loader raised, or (`spec` is there then) what ended the thread later.
    """

    def __init__(self, load: PolicyLoader, changed: Callable[[Sequence[Outcome]], None]) -> None:
        super().__init__(name="policy-worker", daemon=True)
        self.state = ServerState.LOADING
        self.spec: PolicySpec | None = None
        self.failure: BaseException | None = None
        self.busy_since: float | None = None
        self._load = load
        self._changed = changed
        self._batches: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()

    def give(self, jobs: list[Job]) -> None:
        """Hands over a batch. One at a time: the next only after the outcomes of the last have come back."""
        self._batches.put(jobs)

    def stop(self) -> None:
        """Ends the thread after the current batch, closing the policy."""
        self._batches.put(None)

    def run(self) -> None:
        try:
            policy = self._load(self._report)
            self.spec = policy.spec
        except BaseException as error:  # also SystemExit: whoever waits for this policy must be told
            log.exception("the policy did not load")
            self.failure = error
            self._enter(ServerState.FAILED)
            return
        self._enter(ServerState.READY)
        try:
            self._run_batches(policy)
        except BaseException as error:  # as SystemExit from a policy; without this thread the server only looks alive
            log.exception("the policy's thread ended")
            # Whoever raises it again must not end quietly, as from sys.exit(0).
            self.failure = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
            self.busy_since = None
            self._enter(ServerState.FAILED)
        try:
            policy.close()
        except Exception:
            log.exception("the policy did not close cleanly")

    def _run_batches(self, policy: ServedPolicy) -> None:
        while (jobs := self._next(policy)) is not None:
            self.busy_since = time.monotonic()
            self.state = ServerState.BUSY
            try:
                outcomes = self._run_batch(policy, jobs)
            except DeviceLostError:  # no later batch can do better, and a new process can
                raise
            except Exception as error:
                outcomes = [_answer(job, _failure(job, error)) for job in jobs]
            self.busy_since = None
            self.state = ServerState.READY
            self._changed(outcomes)

    def _next(self, policy: ServedPolicy) -> list[Job] | None:
        rest = getattr(policy, "rest", None)
        if rest is not None:
            try:
                return self._batches.get(timeout=_QUIET)
            except queue.Empty:
                _rest(rest)
        return self._batches.get()

    def _report(self, state: str) -> None:
        # A loader may name finer steps than clients need to tell apart; ready is for this thread to say.
        self._enter(ServerState.LOADING if state == ServerState.LOADING else ServerState.WARMING)

    def _enter(self, state: ServerState) -> None:
        if state == self.state:
            return
        log.info("policy is %s", state)
        self.state = state
        self._changed(())

    def _run_batch(self, policy: ServedPolicy, jobs: list[Job]) -> list[Outcome]:
        acts = [job for job in jobs if isinstance(job.request, Act)]
        outcomes = [_reset(policy, job) for job in jobs if not isinstance(job.request, Act)]
        return outcomes + _act(policy, acts)


def _rest(rest: Callable[[], None]) -> None:
    try:
        rest()
    except Exception:  # what goes wrong for good goes wrong in an action, too, and is told there
        log.exception("the policy could not rest")


def _reset(policy: ServedPolicy, job: Job) -> Outcome:
    try:
        policy.reset(job.request.stamp.session)
    except Exception as error:
        return _answer(job, _failure(job, error))
    if isinstance(job.request, Reset):
        return _answer(job, ResetDone(stamp=job.request.stamp))
    return Outcome(job, None, None)


def _act(policy: ServedPolicy, jobs: list[Job]) -> list[Outcome]:
    """Decodes the pictures, asks the policy once for all of them, and builds the replies."""
    started = time.monotonic()
    outcomes: list[Outcome] = []
    ready: list[tuple[Job, Observation]] = []
    for job in jobs:
        try:
            ready.append((job, _observation(job)))
        except Exception as error:
            outcomes.append(_answer(job, _failure(job, error)))
    decoded = time.monotonic()
    answers = _decide(policy, ready)
    decided = time.monotonic()
    for (job, _), answer in zip(ready, answers, strict=True):
        if isinstance(answer, Error):
            outcomes.append(_answer(job, answer))
            continue
        timing = ServerTiming(
            queue_ms=1e3 * (started - job.received_at),
            decode_ms=1e3 * (decoded - started),
            policy_ms=1e3 * (decided - decoded),
            total_ms=1e3 * (time.monotonic() - job.received_at),
            batch_size=len(ready),
        )
        outcomes.append(_answer_action(job, answer, timing))
    return outcomes


def _observation(job: Job) -> Observation:
    assert isinstance(job.request, Act)
    image = decode_image(job.request, job.payload)
    return Observation(image, job.request.instruction, job.request.stamp.captured_at)


def _decide(policy: ServedPolicy, ready: list[tuple[Job, Observation]]) -> list[Action | Error]:
    """One answer each. Where a batch fails each is tried alone: one bad request must not fail the others."""
    act_batch = getattr(policy, "act_batch", None)
    if act_batch is not None and len(ready) > 1:
        try:
            actions = list(act_batch([o for _, o in ready], [job.request.stamp.session for job, _ in ready]))
            if len(actions) != len(ready):
                raise RuntimeError(f"act_batch gave {len(actions)} actions for {len(ready)} observations")
            return actions
        except DeviceLostError:
            raise
        except Exception:
            log.exception("a batch of %d failed; trying its observations one by one", len(ready))
    answers: list[Action | Error] = []
    for job, observation in ready:
        try:
            answers.append(policy.act(observation, job.request.stamp.session))
        except DeviceLostError:
            raise
        except Exception as error:
            answers.append(_failure(job, error))
    return answers


def _answer_action(job: Job, action: Action, timing: ServerTiming) -> Outcome:
    try:
        values = tuple(np.asarray(action.values, np.float64).tolist())
        tokens = tuple(np.asarray(action.tokens, np.int64).tolist())
        return _answer(
            job, ActionReply(stamp=job.request.stamp, values=values, tokens=tokens, trace=action.trace, timing=timing)
        )
    except Exception as error:  # not an Action, or with parts that do not travel
        cause = TypeError(f"the policy's answer is not an action: {error}")
        return _answer(job, _failure(job, cause))


def _answer(job: Job, reply: ActionReply | ResetDone | Error) -> Outcome:
    return Outcome(job, reply, pack(reply))


def _failure(job: Job, error: Exception) -> Error:
    """ValueError is how policies say that the observation is at fault; anything else is their own fault."""
    if isinstance(error, Refusal):
        return error.reply()
    log.error("the policy raised on %s", job.request.stamp, exc_info=error)
    code = ErrorCode.BAD_OBSERVATION if isinstance(error, ValueError) else ErrorCode.POLICY_FAILED
    return Refusal(code, f"{type(error).__name__}: {error}", job.request.stamp).reply()
