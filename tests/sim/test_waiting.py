import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.types import Action, DecodeTrace
from sim.clock import Pace
from sim.control_statistics import ControlLog
from sim.waiting import Answer, Arm, Command, Waiting


def answer(asked_at: int = 0, gripper: float = 0.0) -> Answer:
    values = np.array([0.5, -1, 0, 0, 0, 0.25, gripper], np.float32)
    return Answer(Action(values, np.zeros(0, np.int64), DecodeTrace(1)), asked_at, 50.0 * asked_at)


def motions(arm: Arm, ticks: range) -> list[float]:
    return [float(arm.command(tick).values[1]) for tick in ticks]


def test_before_the_first_action_the_arm_stands_open():
    command = Arm(Waiting(hold=1.0), 1, 50.0).command(0)
    np.testing.assert_array_equal(command.values, [0, 0, 0, 0, 0, 0, -1])
    assert (command.age, command.held) == (None, True)


@pytest.mark.parametrize(
    ("hold", "expected"), [(0.0, [-1, 0, 0, 0]), (1.0, [-1, -1, -1, -1]), (0.5, [-1, -0.5, -0.25, -0.125])]
)
def test_ways_to_hold(hold, expected):
    arm = Arm(Waiting(hold=hold), 1, 50.0)
    assert arm.begin(answer(), 3)
    assert motions(arm, range(3, 7)) == expected
    assert all(arm.command(tick).values[6] == 1.0 for tick in range(3, 9))  # the gripper keeps its grip
    assert [arm.command(tick).held for tick in (3, 4)] == [False, True]
    assert arm.command(5).age == 5


def test_a_repeated_action_ends_when_it_is_too_old():
    arm = Arm(Waiting(hold=1.0, max_age_ms=150.0), 1, 50.0)
    assert arm.begin(answer(asked_at=1), 2)
    assert motions(arm, range(2, 6)) == [-1, -1, -1, 0]
    assert not arm.begin(answer(asked_at=1), 5)


def test_an_action_that_grows_too_old_meanwhile_is_carried_out_but_not_repeated():
    arm = Arm(Waiting(hold=1.0, max_age_ms=60.0), 5, 10.0)  # 100 Hz
    assert arm.begin(answer(asked_at=0), 4)
    assert motions(arm, range(4, 11)) == [-1] * 5 + [0] * 2  # 6 ticks old in tick 6
    assert [arm.command(tick).held for tick in (8, 9)] == [False, True]
    assert [arm.busy(tick) for tick in (8, 9)] == [True, False]


def test_an_action_lasts_a_control_period_whatever_the_rate():
    arm = Arm(Waiting(hold=0.5), 5, 10.0)
    arm.begin(answer(), 0)
    assert motions(arm, range(12)) == [-1] * 5 + [-0.5] * 5 + [-0.25] * 2
    assert [arm.busy(tick) for tick in (4, 5)] == [True, False]


@given(st.floats(0, 1), st.integers(1, 5), st.integers(0, 40))
def test_holding_never_moves_faster_than_the_action(hold, lasting, tick):
    arm = Arm(Waiting(hold=hold), lasting, 50.0 / lasting)
    arm.begin(answer(), 0)
    assert (np.abs(arm.command(tick).values[:6]) <= np.abs(arm.command(0).values[:6])).all()


@pytest.mark.parametrize("bad", [{"hold": -0.1}, {"hold": 1.1}, {"max_age_ms": 0.0}])
def test_impossible_rules_are_refused(bad):
    with pytest.raises(ValueError, match=r"hold must|max_age_ms must"):
        Waiting(**bad)


def test_statistics_of_a_known_motion():
    log = ControlLog(period_ms=50.0, tick_ms=50.0)
    seconds = 0.05 * np.arange(9)
    for position in np.stack([seconds**3, np.zeros(9), np.zeros(9)], axis=1):
        log.moved(position)
    motion = np.zeros(7)
    for age, held in [(None, True), (1, False), (2, True), (2, False), (0, False), (1, True), (1, False), (1, False)]:
        log.stepped(Command(motion, age, held))
    log.answered(answer(asked_at=1), begun=True)
    log.answered(answer(asked_at=2), begun=False)
    statistics = log.statistics(Pace(1.0, 2.0))
    assert statistics.jerk == pytest.approx(6.0)
    assert statistics.path_m == pytest.approx(0.4**3)
    assert (statistics.ticks, statistics.holds, statistics.stale) == (8, 3, 4)
    assert (statistics.decisions, statistics.dropped, statistics.deadline_misses) == (1, 1, 1)
    assert statistics.simulated_s == pytest.approx(0.4)
    assert (statistics.late_p95_ms, statistics.slipped_ms) == (1.0, 2.0)
