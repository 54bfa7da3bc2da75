import pytest

from sim.protocol import OFFICIAL, SEEDED_EVERY_EPISODE, Protocol, foreign_statistics


def test_the_official_protocol_still_names_its_one_deviation():
    assert OFFICIAL.deviations() == (SEEDED_EVERY_EPISODE,)


def test_deviations_are_named_with_both_values():
    changed = Protocol(settle_steps=0, step_limit=50)
    assert changed.deviations()[1:] == ("settle_steps=0 (official: 10)", "step_limit=50 (official: the suite's)")


@pytest.mark.parametrize("bad", [{"settle_steps": -1}, {"resolution": 8}, {"simulator_seed": 2**32}, {"step_limit": 0}])
def test_impossible_values_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Protocol(**bad)


@pytest.mark.parametrize(
    ("key", "suite"),
    [("libero_spatial", "libero_object"), ("libero_spatial_no_noops", "libero_10_lan"), ("libero_10", "fake")],
)
def test_statistics_of_another_suite_are_named(key, suite):
    (told,) = foreign_statistics(key, suite)
    assert told.startswith(f"actions scaled by statistics of {key.removesuffix('_no_noops')} (official")


@pytest.mark.parametrize(
    ("key", "suite"),
    [
        ("libero", "libero_object"),
        ("libero_spatial_no_noops", "libero_spatial"),
        ("libero_goal", "libero_goal_swap"),
        ("bridge_orig", "libero_goal"),
        ("", "libero_10"),
    ],
)
def test_statistics_of_the_suite_or_of_no_suite_are_fine(key, suite):
    assert foreign_statistics(key, suite) == ()
