"""The order of episodes: worlds are seldom built, policies are done with one after the other and share the workers.

Knows episodes and how many of each kind are waiting or under way. Knows neither processes nor what a policy is.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sim.protocol import OFFICIAL, Protocol
from sim.timing import LOCK_STEP, Timing


class WorldKind(NamedTuple):
    """What a worker has to build anew for an episode of another kind."""

    suite: str
    task: int
    protocol: Protocol


@dataclass(frozen=True, slots=True)
class EpisodeItem:
    """One episode to run. video: where to film it, None for no film. policy: its number among the pool's."""

    suite: str
    task: int
    init_state: int
    video: Path | None = None
    protocol: Protocol = OFFICIAL
    timing: Timing = LOCK_STEP
    policy: int = 0

    @property
    def world(self) -> WorldKind:
        """What a worker has to have open for it."""
        return WorldKind(self.suite, self.task, self.protocol)


class EpisodeQueue:
    """Hands out episodes so that a worker stays with its world, and earlier policies are done with first."""

    def __init__(self, items: Sequence[EpisodeItem]) -> None:
        self._waiting: dict[int, dict[WorldKind, deque[EpisodeItem]]] = {}
        self._under_way: Counter[int] = Counter()
        self._workers: Counter[WorldKind] = Counter()
        for item in sorted(items, key=lambda item: item.policy):
            self._waiting.setdefault(item.policy, {}).setdefault(item.world, deque()).append(item)

    def policies(self) -> list[int]:
        """Those with episodes waiting, in their order."""
        return [policy for policy in self._waiting if self.waiting(policy)]

    def waiting(self, policy: int) -> int:
        """How many episodes of this policy have not been handed out."""
        return sum(map(len, self._waiting[policy].values()))

    def unfinished(self, policy: int) -> int:
        """How many episodes of this policy are waiting or under way."""
        return self.waiting(policy) + self._under_way[policy]

    def take(self, current: EpisodeItem | None, policies: Iterable[int], most: int) -> EpisodeItem | None:
        """The next episode for a worker that has last run `current`, of one of these policies; None if there is none.

        In the same world, else in one nobody works at, else in the one with the most episodes left per worker.
        most: episodes of one policy under way at a time.
        """
        free = [policy for policy in policies if self.waiting(policy) and self._under_way[policy] < most]
        if not free:
            return None
        world = current.world if current else None
        if world is None or not any(self._waiting[policy].get(world) for policy in free):
            if world is not None:
                self._workers[world] -= 1
            world = self._choose_world(free)
            self._workers[world] += 1
        policy = next(policy for policy in free if self._waiting[policy].get(world))
        self._under_way[policy] += 1
        return self._waiting[policy][world].popleft()

    def end(self, item: EpisodeItem) -> None:
        """An episode that was handed out is over."""
        self._under_way[item.policy] -= 1

    def give_back(self, item: EpisodeItem) -> None:
        """An episode that was handed out has to be run again; it is first in its line."""
        self.end(item)
        self._waiting[item.policy][item.world].appendleft(item)

    def drop(self, policy: int) -> list[EpisodeItem]:
        """Takes all episodes of this policy out that have not been handed out."""
        dropped = [item for items in self._waiting[policy].values() for item in items]
        self._waiting[policy].clear()
        return dropped

    def _choose_world(self, policies: Iterable[int]) -> WorldKind:
        left: Counter[WorldKind] = Counter()
        for policy in policies:
            left.update({world: len(items) for world, items in self._waiting[policy].items() if items})
        untouched = (world for world in left if not self._workers[world])
        return next(untouched, None) or max(left, key=lambda world: left[world] / self._workers[world])
