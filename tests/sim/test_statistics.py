import math

import pytest

from sim.statistics import SuccessRate, compare_paired


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_agrees_with_published_values(successes, episodes, low, high):
    assert SuccessRate(successes, episodes).interval() == pytest.approx((low, high), abs=5e-5)


def test_no_episodes_say_nothing():
    nothing = SuccessRate(0, 0)
    assert math.isnan(nothing.rate)
    assert nothing.interval() == (0.0, 1.0)


def test_more_successes_than_episodes_are_refused():
    with pytest.raises(ValueError, match="got 3"):
        SuccessRate(3, 2)


def test_mcnemar_is_the_exact_two_sided_test():
    first = {episode: episode < 9 for episode in range(20)}  # 9 only the first solves
    second = {episode: episode == 15 for episode in range(20)}  # 1 only the second solves
    comparison = compare_paired(first, second)
    assert (comparison.only_first, comparison.only_second) == (9, 1)
    assert comparison.p_value == pytest.approx(2 * (1 + 10) / 2**10)  # two tails of a fair coin, 10 throws
    assert comparison.points == 40
    low, high = comparison.interval()
    assert 9 < low < 12  # (9.5 - 1.5) / 22 and 1.96 errors of 0.132 to either side
    assert 60 < high < 64


def test_agreeing_everywhere_leaves_an_interval():
    low, high = compare_paired(dict.fromkeys(range(800), True), dict.fromkeys(range(800), True)).interval()
    assert low == -high
    assert 0.2 < high < 0.3


def test_only_shared_episodes_are_compared():
    comparison = compare_paired({1: True, 2: True}, {2: True, 3: False})
    assert (comparison.episodes, comparison.p_value) == (1, 1.0)
    with pytest.raises(ValueError, match="none in common"):
        compare_paired({1: True}, {2: True})
