"""Who gets which episode: worlds are kept, earlier policies come first, none has too many workers."""

from collections import Counter
from itertools import pairwise

from sim.episode_queue import EpisodeItem, EpisodeQueue
from sim.protocol import Protocol


def items(policies: int, tasks: int, states: int) -> list[EpisodeItem]:
    return [
        EpisodeItem("fake", task, state, policy=policy)
        for policy in range(policies)
        for task in range(tasks)
        for state in range(states)
    ]


def work_off(queue: EpisodeQueue, workers: int, policies: list[int], most: int) -> list[list[EpisodeItem]]:
    """What each worker gets while all take their turns, until none gets any more."""
    taken: list[list[EpisodeItem]] = [[] for _ in range(workers)]
    while True:
        current = [queue.take(own[-1] if own else None, policies, most) for own in taken]
        if not any(current):
            return taken
        for own, item in zip(taken, current, strict=True):
            if item:
                own.append(item)
                queue.end(item)


def changes(taken: list[EpisodeItem]) -> int:
    return sum(one.world != other.world for one, other in pairwise(taken))


def test_workers_stay_with_their_task_and_share_the_last():
    first, second = work_off(EpisodeQueue(items(1, 3, 4)), 2, [0], 2)
    assert len({*first, *second}) == 12
    assert ([item.task for item in first], [item.task for item in second]) == ([0] * 4 + [2] * 2, [1] * 4 + [2] * 2)


def test_a_world_is_kept_for_the_next_policy():
    taken = work_off(EpisodeQueue(items(3, 2, 4)), 2, [0, 1, 2], 2)
    assert sum(map(len, taken)) == 24
    assert [changes(own) for own in taken] == [0, 0]
    assert {item.world for item in taken[0]} != {item.world for item in taken[1]}


def test_no_policy_has_more_workers_than_it_may_and_earlier_ones_come_first():
    queue = EpisodeQueue(items(3, 1, 8))
    taken = [queue.take(None, [0, 1, 2], 2) for _ in range(7)]
    assert [item.policy if item else None for item in taken] == [0, 0, 1, 1, 2, 2, None]
    assert taken[0] is not None
    queue.end(taken[0])
    following = queue.take(taken[0], [0, 1, 2], 2)
    assert following is not None
    assert following.policy == 0


def test_what_is_given_back_comes_first_and_what_is_dropped_never():
    queue = EpisodeQueue(items(2, 1, 2))
    first = queue.take(None, [0], 1)
    assert first is not None
    assert (queue.waiting(0), queue.unfinished(0)) == (1, 2)
    queue.give_back(first)
    assert (queue.waiting(0), queue.unfinished(0)) == (2, 2)
    assert queue.take(None, [0], 1) == first
    assert [item.init_state for item in queue.drop(0)] == [1]
    assert (queue.unfinished(0), queue.policies()) == (1, [1])
    assert queue.take(first, [0], 2) is None


def test_a_protocol_of_its_own_is_a_world_of_its_own():
    fast = [EpisodeItem("fake", 0, state, protocol=Protocol(control_hz=100)) for state in range(2)]
    (taken,) = work_off(EpisodeQueue([*items(1, 1, 2), *fast]), 1, [0], 1)
    assert Counter(item.protocol.control_hz for item in taken) == {20: 2, 100: 2}
    assert changes(taken) == 1
