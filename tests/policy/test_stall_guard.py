"""A robot that stands still and repeats itself is decoded exactly, whatever the rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from judged_episode import STATISTICS, Episode

from policy.decoding.acceptance import make_rule
from policy.decoding.acceptance.stall import StallGuard

CHOICE = np.full(7, 200)
GENEROUS: dict[str, Any] = {"translation_mm": 4.0, "rotation_mrad": 40.0, "relative": 1.0, "floor_bins": 10}
RULES = [
    ("corrected", {"radius": 9}),
    ("spec-vla", {"radius": 9}),
    ("physical", GENEROUS | {"budget_mm": None, "budget_mrad": None}),
]


def guarded(rule: tuple[str, dict[str, Any]], stall_actions: int) -> Episode:
    return Episode(StallGuard(make_rule(*rule, STATISTICS), stall_actions))


@pytest.mark.parametrize("rule", RULES)
def test_a_stall_forces_exactness_until_something_changes(rule: tuple[str, dict[str, Any]]) -> None:
    episode = guarded(rule, 3)
    accepted = [bool(episode.step(CHOICE, CHOICE + 3, still=True).all()) for _ in range(7)]
    assert accepted == [True] * 4 + [False] * 3  # the first action and three repetitions
    assert episode.rule.forced_exact(episode.state)[0, -1]
    assert episode.step(CHOICE, CHOICE, still=True).all()  # what the target chooses itself may stand
    assert not episode.step(CHOICE, CHOICE + 3, still=False).any()  # the picture moves, as the rule will know next time
    assert episode.step(CHOICE, CHOICE + 3, still=True).all()


def test_a_robot_that_trembles_in_place_stands_still() -> None:
    episode = guarded(("corrected", {"radius": 5}), 4)
    for action in range(5):
        assert episode.step(CHOICE + action % 2, CHOICE, still=True).all()
    assert not episode.step(CHOICE + 1, CHOICE, still=True).any()
    assert not episode.step(CHOICE + 50, CHOICE, still=True).any()  # the target goes on at last
    assert episode.step(CHOICE + 50, CHOICE + 49, still=True).all()


@pytest.mark.parametrize("rule", RULES)
def test_repeating_an_action_while_the_picture_moves_is_no_stall(rule: tuple[str, dict[str, Any]]) -> None:
    episode = guarded(rule, 1)
    assert all(episode.step(CHOICE, CHOICE + 1, still=False).all() for _ in range(10))


def test_the_reasons_of_the_rule_itself_stay() -> None:
    assert StallGuard(make_rule("physical", {}, STATISTICS), 4).forced_reasons == ("budget", "stall")
    assert StallGuard(make_rule("corrected", {}, STATISTICS), 4).forced_reasons == ("stall",)


def test_a_number_of_repetitions_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="stall_actions is 0; it must be at least 1 repetition, or null for no guard"):
        StallGuard(make_rule("corrected", {}, STATISTICS), 0)
