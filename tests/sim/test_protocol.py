import pytest

from sim.protocol import OFFICIAL, SEEDED_EVERY_EPISODE, Protocol


def test_the_official_protocol_still_names_its_one_deviation():
    assert OFFICIAL.deviations() == (SEEDED_EVERY_EPISODE,)


def test_deviations_are_named_with_both_values():
    changed = Protocol(settle_steps=0, step_limit=50)
    assert changed.deviations()[1:] == ("settle_steps=0 (official: 10)", "step_limit=50 (official: the suite's)")


@pytest.mark.parametrize("bad", [{"settle_steps": -1}, {"resolution": 8}, {"simulator_seed": 2**32}, {"step_limit": 0}])
def test_impossible_values_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Protocol(**bad)
