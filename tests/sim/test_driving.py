"""Policy and expert take turns, and the same seed gives the same turns."""

import numpy as np
import pytest

from policy.fake import FakePolicy
from policy.types import Observation
from sim.driving import AlternatingDriver, LoneDriver, Stretches

LABEL = np.full(7, 0.25, np.float32)
FRAME = Observation(np.zeros((32, 32, 3), np.uint8), "pick up the milk")


def turns(driver: AlternatingDriver, seed: int, steps: int = 400) -> list[bool]:
    driver.reset(seed)
    return [bool((driver(FRAME, LABEL) != LABEL).any()) for _ in range(steps)]


def test_both_drive_in_stretches_of_about_the_asked_length():
    driver = AlternatingDriver(FakePolicy(), Stretches(policy=20, expert=5, spread=1))
    driven = np.concatenate([turns(driver, seed) for seed in range(20)])
    assert 0.7 < driven.mean() < 0.9
    changes = np.count_nonzero(np.diff(driven))
    assert 8 < 2 * len(driven) / changes < 35


def test_in_some_episodes_the_policy_drives_much_longer_than_in_others():
    driver = AlternatingDriver(FakePolicy(), Stretches(policy=30, expert=8, spread=3))
    shares = [np.mean(turns(driver, seed, 2000)) for seed in range(30)]
    assert min(shares) < 0.68 < 0.84 < max(shares)
    means = []
    for seed in range(50):
        driver.reset(seed)
        means.append(driver._policy_mean)
    assert 10 <= min(means) < 15 < 60 < max(means) <= 90


def test_the_turns_follow_from_the_seed():
    driver = AlternatingDriver(FakePolicy())
    assert turns(driver, 3) == turns(driver, 3)
    assert turns(driver, 3) != turns(driver, 4)


def test_a_policy_may_drive_all_the_time():
    policy = FakePolicy()
    driver = LoneDriver(policy)
    assert driver.name == policy.spec.policy_id
    driver.reset(3)
    assert all((driver(FRAME, LABEL) != LABEL).any() for _ in range(50))


def test_stretches_are_checked():
    with pytest.raises(ValueError, match="at least 1 step"):
        Stretches(policy=0.5)
