"""In which order to record episodes. Knows tasks and seeds by name only; nothing of simulators or processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# Seeds below are kept for other uses; evaluations reset with seed 0.
FIRST_TRAINING_SEED = 1000
# A worker stays with its task, whose simulator takes seconds to build, until the task is this far ahead of another.
_LEAD = 6


class TaskKey(NamedTuple):
    """A suite's name and a task's number in it."""

    suite: str
    task: int


class Item(NamedTuple):
    """One episode to record: a random reset of the task with this seed."""

    key: TaskKey
    seed: int


# How much of its failure rate a task keeps when the outcome of one more episode is counted.
_MEMORY = 0.9


class BalancedSchedule:
    """Hands out episodes so that tasks progress evenly, within `_LEAD` episodes, and workers seldom change task.

    emphasis: a task that fails always progresses so many times faster than one that never does (1 + emphasis to 1):
        a curriculum by failure, as `report` is told of them. 0 counts all tasks alike.
    """

    def __init__(self, items: Iterable[Item], emphasis: float = 0.0) -> None:
        self._emphasis = emphasis
        self._failing: dict[TaskKey, float] = {}
        self._waiting: dict[TaskKey, list[int]] = {}
        for key, seed in items:
            self._waiting.setdefault(key, []).append(seed)
        # The tasks with the most left to do are behind: resuming an unbalanced collection balances it.
        most = max(map(len, self._waiting.values()), default=0)
        self._progress = {key: float(most - len(seeds)) for key, seeds in self._waiting.items()}
        self._workers = dict.fromkeys(self._waiting, 0)

    def __len__(self) -> int:
        """Episodes not handed out yet."""
        return sum(map(len, self._waiting.values()))

    def next(self, current: TaskKey | None) -> Item | None:
        """The next episode for a worker whose simulator is built for `current`, if for any; None when none is left."""
        if current is not None:
            self._workers[current] -= 1
        unfinished = [key for key, seeds in self._waiting.items() if seeds]
        if not unfinished:
            return None
        # Among tasks equally far behind, one that nobody works on.
        choice = min(unfinished, key=lambda key: (self._progress[key], self._workers[key]))
        if current in unfinished and self._progress[current] < self._progress[choice] + _LEAD:
            choice = current
        self._workers[choice] += 1
        self._progress[choice] += 1 / (1 + self._emphasis * self._failing.get(choice, 0.0))
        return Item(choice, self._waiting[choice].pop(0))

    def report(self, key: TaskKey, solved: bool) -> None:
        """Counts the outcome of an episode of this task."""
        self._failing[key] = _MEMORY * self._failing.get(key, 0.0) + (1 - _MEMORY) * (not solved)
