"""Runs episodes in several processes, each with a simulator of its own, while policies come up and go down.

Knows who gets which episode and when which policy has to be there. Does not know files or statistics.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait

from sim.episode_queue import EpisodeItem, EpisodeQueue
from sim.episode_worker import EpisodeFailed, EpisodeWorker, Outcome, Rendering
from sim.policy_hosts import PolicyHost, PolicyUnavailableError
from sim.records import EndReason
from sim.sources import PolicySource

LOGGER = logging.getLogger(__name__)

# An episode whose process dies, or that ends in an exception, is tried this often before it counts as an error.
ATTEMPTS = 2
# An episode that has not ended by then, in seconds, is given up as if its process had died: a simulator or a driver may
# hang. Generous, since a large policy on a CPU needs some seconds for each of up to 520 decisions.
EPISODE_LIMIT_S = 3600.0
# How often policies are looked after while no episode ends, in seconds.
_TURN_S = 0.2


class WorkerPool:
    """Worker processes for one evaluation; use as a context manager, so that none survives it, nor a policy.

    hosts: the policies, by the numbers that items name. workers: processes. render: whether they draw.
    live: policies that share the workers at a time; while one runs out of episodes, the next is already brought up.
    render_devices: EGL devices that workers take turns on; none leaves the choice to MUJOCO_EGL_DEVICE_ID.
    episode_limit_s: wall time of one episode, in seconds, after which its process is ended.
    """

    def __init__(
        self,
        hosts: Sequence[PolicyHost],
        workers: int,
        render: bool,
        *,
        live: int = 1,
        render_devices: Sequence[int] = (),
        episode_limit_s: float = EPISODE_LIMIT_S,
    ) -> None:
        for name, value in (("workers", workers), ("live", live)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._hosts = hosts
        self._live = live
        self._episode_limit_s = episode_limit_s
        devices = render_devices or (None,)
        self._renderings = [Rendering(render, devices[number % len(devices)]) for number in range(workers)]
        self._running: list[EpisodeWorker] = []

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        everyone: list[EpisodeWorker | PolicyHost] = [*self._running, *self._hosts]
        for one in everyone:
            one.stop()
        for one in everyone:
            one.close()

    def run(self, items: Sequence[EpisodeItem], deadline: float = math.inf) -> Iterator[tuple[EpisodeItem, Outcome]]:
        """Yields every episode with its outcome as it ends; none is started after `deadline` (of time.monotonic).

        Episodes of a policy that cannot be brought up, or that has gone, fail at once. Raises WorkerSetupError if a
        worker cannot get to work.
        """
        queue = EpisodeQueue(items)
        attempts: Counter[EpisodeItem] = Counter()
        rota = _Rota(self._hosts, queue, self._live, len(self._renderings))
        self._running = [EpisodeWorker(rendering) for rendering in self._renderings[: len(items)]]
        while True:
            in_time = time.monotonic() < deadline
            for policy, message in rota.turn(in_time):
                yield from self._give_up(policy, message, queue)
            if in_time:
                self._hand_out(queue, rota)
            busy = [worker for worker in self._running if worker.item]
            if not busy and not (in_time and queue.policies()):
                return
            heard = wait([worker.connection for worker in busy], _TURN_S)
            for worker in busy:
                outcome: Outcome
                if worker.connection in heard:
                    item, outcome = worker.collect()
                elif time.monotonic() - worker.given_at > self._episode_limit_s:
                    item, outcome = worker.abort(), EpisodeFailed(EndReason.PROCESS_DIED, self._overdue())
                else:
                    continue
                attempts[item] += 1
                if isinstance(outcome, EpisodeFailed) and attempts[item] < ATTEMPTS:
                    LOGGER.warning("%s task %d state %d again: %s", *_place(item), outcome.message)
                    queue.give_back(item)
                else:
                    queue.end(item)
                    yield item, outcome

    def _hand_out(self, queue: EpisodeQueue, rota: _Rota) -> None:
        """An episode for every worker that has none, as far as there are policies for them."""
        for worker in self._running:
            if worker.item is None and (item := queue.take(worker.last, sorted(rota.sources), rota.share())):
                worker.give(item, rota.sources[item.policy], frozenset(rota.sources))

    def _overdue(self) -> str:
        return f"no end within {self._episode_limit_s / 60:.3g} minutes; the worker process was ended"

    def _give_up(self, policy: int, message: str, queue: EpisodeQueue) -> Iterator[tuple[EpisodeItem, EpisodeFailed]]:
        """All that is left of a policy that is gone. Its workers would wait for it, so they are replaced."""
        LOGGER.error("%s, %s decoding: %s", *_name(self._hosts[policy]), message)
        items = queue.drop(policy)
        for worker in self._running:
            if worker.item and worker.item.policy == policy:
                items.append(worker.abort())
                queue.end(items[-1])
        yield from ((item, EpisodeFailed(EndReason.PROCESS_DIED, message)) for item in items)


class _Rota:
    """Which policies are up, and where those that are ready can be reached.

    A policy makes room for the next as soon as what is waiting of it is less than a round of its workers, so that the
    next can come up meanwhile; so at most twice as many as are to share the workers are there at a time.
    """

    def __init__(self, hosts: Sequence[PolicyHost], queue: EpisodeQueue, live: int, workers: int) -> None:
        self._hosts, self._queue, self._live, self._workers = hosts, queue, live, workers
        self._pending = deque(queue.policies())
        self._up: list[int] = []
        self.sources: dict[int, PolicySource] = {}

    def share(self) -> int:
        """Workers per policy; all of them for the last one."""
        return math.ceil(self._workers / max(1, min(self._live, len(self._queue.policies()))))

    def turn(self, may_start: bool) -> list[tuple[int, str]]:
        """Starts and stops what is due. Returns policies that have gone while they were needed, and why."""
        for policy in [policy for policy in self._up if not self._queue.unfinished(policy)]:
            self._end(policy)
        while may_start and self._pending and self._has_room():
            self._up.append(self._pending.popleft())
            self._hosts[self._up[-1]].start()
        gone = []
        for policy in list(self._up):
            try:
                source = self._hosts[policy].source()
            except PolicyUnavailableError as error:
                self._end(policy)
                gone.append((policy, str(error)))
                continue
            if source is not None:
                self.sources[policy] = source
        return gone

    def _has_room(self) -> bool:
        share = math.ceil(self._workers / self._live)
        lasting = sum(self._queue.waiting(policy) >= share for policy in self._up)
        return lasting < self._live and len(self._up) < 2 * self._live

    def _end(self, policy: int) -> None:
        self._up.remove(policy)
        self.sources.pop(policy, None)
        self._hosts[policy].stop()


def _place(item: EpisodeItem) -> tuple[str, int, int]:
    return item.suite, item.task, item.init_state


def _name(host: PolicyHost) -> tuple[str, str]:
    spec = host.spec()
    return spec.policy_id, spec.decoder
