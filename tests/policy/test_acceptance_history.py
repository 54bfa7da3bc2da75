"""What the physical rule remembers of an episode: the sum of its errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_episode import POSE, STATISTICS, Episode

from policy.decoding.acceptance import make_rule
from policy.decoding.acceptance.base import AcceptanceState

GENEROUS: dict[str, Any] = {"translation_mm": 4.0, "rotation_mrad": 40.0, "relative": 1.0, "floor_bins": 10}
NO_BUDGET: dict[str, Any] = {"budget_mm": None, "budget_mrad": None}


def lagging(choice: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A draft that always errs to the same side."""
    return choice - random.integers(1, 10, 7)


def erratic(choice: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return choice + random.integers(-10, 11, 7)


def play(episode: Episode, ticks: int, seed: int, draft: Callable[..., np.ndarray]) -> None:
    random = np.random.default_rng(seed)
    for _ in range(ticks):
        choice = random.integers(30, 226, 7)
        episode.step(choice, draft(choice, random))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.sampled_from([lagging, erratic]))
def test_the_budget_bounds_what_errors_add_up_to(seed: int, retained: float, draft: Callable[..., np.ndarray]) -> None:
    budget = np.repeat([5.0, 30.0], 3)
    episode = Episode(
        make_rule("physical", {**GENEROUS, "budget_mm": 5.0, "budget_mrad": 30.0, "retained": retained}, STATISTICS)
    )
    play(episode, 60, seed, draft)
    drift = episode.drift()

    leaky = np.zeros(POSE)
    for deviation in drift:
        leaky = retained * leaky + deviation
        assert (np.abs(leaky) <= budget + 1e-3).all()
    sums = np.concatenate([np.zeros((1, POSE)), np.cumsum(drift, axis=0)])
    for ticks in (1, 2, 10, 60):
        over_window = np.abs(sums[ticks:] - sums[:-ticks])
        assert (over_window <= budget * (1 + retained + (1 - retained) * (ticks - 1)) + 1e-3).all()


def test_without_a_budget_a_lagging_draft_drifts_away() -> None:
    unbounded = Episode(make_rule("physical", GENEROUS | NO_BUDGET, STATISTICS))
    bounded = Episode(make_rule("physical", GENEROUS | {"retained": 1.0}, STATISTICS))
    for episode in (unbounded, bounded):
        play(episode, 60, 0, lagging)
    assert (unbounded.drift().sum(axis=0) < [-60, -60, -60, -600, -600, -600]).all()
    assert (bounded.drift().sum(axis=0) >= [-5, -5, -5, -10, -10, -10]).all()


def test_an_exhausted_budget_still_takes_what_makes_up_for_it() -> None:
    episode = Episode(make_rule("physical", GENEROUS | {"retained": 1.0}, STATISTICS))
    choice = np.full(7, 200)
    # 5 mm are 12.75 bins, 10 mrad are 2.55.
    steps = [-6, -6, -6, -1, -1, -1, 0]
    assert episode.step(choice, choice + steps).all()
    assert not episode.rule.forced_exact(episode.state).any()
    assert episode.step(choice, choice + steps).all()
    assert episode.rule.forced_exact(episode.state).tolist() == [[True]]
    assert not episode.step(choice, choice + steps).any()
    assert not episode.step(choice, choice - [1, 1, 1, 1, 1, 1, 0]).any()
    assert episode.step(choice, choice - np.array(steps)).all()
    assert episode.step(choice, choice + steps).all()


def test_an_exhausted_budget_recovers_by_forgetting() -> None:
    episode = Episode(make_rule("physical", GENEROUS | {"retained": 0.5}, STATISTICS))
    choice = np.full(7, 200)
    lag = np.array([-9, -9, -9, -2, -2, -2, 0])
    accepted = [episode.step(choice, choice + lag)[0] for _ in range(6)]
    assert accepted == [True, False, True, False, True, False]


def test_emitting_the_target_leaves_nothing_to_add_up() -> None:
    episode = Episode(make_rule("physical", GENEROUS | {"emit": "target"}, STATISTICS))
    choice = np.full(7, 200)
    for _ in range(20):
        assert episode.step(choice, choice - 2).all()
    assert not episode.drift().any()
    assert not episode.state.signed_error.any()


@pytest.mark.parametrize(
    ("choice", "drafted", "accepted"),
    [
        (127, 128, True),  # at rest: the floor of one bin, either way
        (127, 126, True),
        (127, 129, False),
        (129, 127, False),  # two bins per tick: a quarter of it is none, so the floor holds
        (129, 128, True),
        (139, 136, True),  # twelve bins: three
        (139, 135, False),
        (200, 190, True),  # fast: the tolerance itself, ten bins
        (200, 189, False),
    ],
)
def test_at_low_speed_tolerance_shrinks_with_the_motion(choice: int, drafted: int, accepted: bool) -> None:
    rule = make_rule("physical", {**NO_BUDGET, "translation_mm": 4.0, "rotation_mrad": 40.0}, STATISTICS)
    found = Episode(rule).step(np.full(7, choice), np.full(7, drafted))
    assert found.tolist() == [accepted] * POSE


@pytest.mark.parametrize("direction", [1, -1])
def test_near_zero_no_draft_turns_the_direction_round(direction: int) -> None:
    """Even where the floor alone would allow it."""
    rule = make_rule("physical", GENEROUS | NO_BUDGET, STATISTICS)
    choice = np.full(7, 127 + 2 * direction)
    accepted = [
        Episode(rule).step(choice, np.full(7, 127 + direction * motion)).tolist() for motion in (-2, -1, 0, 1, 8)
    ]
    assert accepted == [[value] * POSE for value in (False, False, True, True, True)]


@pytest.mark.parametrize(
    "options", [{"translation_mm": 0.0, "rotation_mrad": 0.0, "budget_mm": 0.0}, {"emit": "target", "budget_mrad": 0.0}]
)
def test_where_nothing_can_add_up_no_budget_is_exhausted(options: dict[str, Any]) -> None:
    rule = make_rule("physical", options, STATISTICS)
    assert not rule.forced_exact(AcceptanceState.fresh(3)).any()
