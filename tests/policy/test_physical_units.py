"""What a bin commands: figures that can be worked out by hand from LIBERO's statistics and controller."""

from __future__ import annotations

import numpy as np
import pytest

from policy.decoding.physical import ActionUnits, ControllerScale
from policy.openvla.action_tokens import ActionStatistics, ActionTokenizer

# The statistics of libero_spatial, without no-ops.
SPATIAL = ActionStatistics(
    q01=np.array([-0.74547, -0.66161, -0.9375, -0.10714, -0.20679, -0.18429, 0.0]),
    q99=np.array([0.9375, 0.87589, 0.93214, 0.10393, 0.17679, 0.14571, 1.0]),
    mask=np.array([True] * 6 + [False]),
)


def test_a_bin_of_libero_spatial_is_a_third_of_a_millimetre() -> None:
    sizes = ActionUnits.from_statistics(SPATIAL).bin_sizes
    np.testing.assert_allclose(sizes[:6], [0.330, 0.301, 0.367, 0.414, 0.752, 0.647], atol=5e-4)


def test_motions_are_the_actions_times_the_controllers_scale() -> None:
    bins = np.random.default_rng(0).integers(0, 256, (50, 7))
    tokenizer = ActionTokenizer()
    actions = SPATIAL.unnormalize(tokenizer.decode(tokenizer.vocab_size - 1 - bins))
    units = ActionUnits.from_statistics(SPATIAL, ControllerScale(millimetres=1000.0, milliradians=10.0))
    found = units.motions[np.arange(7), bins]
    np.testing.assert_allclose(found, actions * [1000, 1000, 1000, 10, 10, 10, 1])


def test_no_motion_is_the_bin_nearest_to_zero() -> None:
    units = ActionUnits.from_statistics(SPATIAL)
    zeros = units.zero_bins[:6]
    assert (np.abs(units.motions[np.arange(6), zeros]) <= units.bin_sizes[:6] / 2).all()


def test_the_gripper_opens_from_token_31808_on() -> None:
    opens = ActionUnits.from_statistics(SPATIAL).gripper_opens
    tokens = 31999 - np.arange(256)
    np.testing.assert_array_equal(opens, tokens <= 31808)


def test_tolerances_become_bins_of_each_dimension() -> None:
    in_bins = ActionUnits.from_statistics(SPATIAL).in_bins(millimetres=1.25, milliradians=2.5)
    np.testing.assert_array_equal(np.floor(in_bins), [3, 4, 3, 6, 3, 3])


def test_a_dimension_that_never_moved_bears_any_tolerance_but_zero() -> None:
    still = ActionStatistics(np.zeros(7), np.array([0.0, 1, 1, 1, 1, 1, 1]), np.ones(7, bool))
    units = ActionUnits.from_statistics(still)
    assert units.in_bins(0.1, 0.1)[0] == np.inf
    assert units.in_bins(0.0, 0.0).tolist() == [0.0] * 6


def test_deviations_carry_sign_and_unit() -> None:
    units = ActionUnits.from_statistics(SPATIAL)
    reference = np.array([100, 100, 100, 100, 100, 100, 0])
    emitted = np.array([103, 100, 97, 101, 100, 100, 250])
    found = units.deviations([emitted, reference], [reference, emitted])
    sizes = units.bin_sizes
    np.testing.assert_allclose(found[0], [3 * sizes[0], 0, -3 * sizes[2], sizes[3], 0, 0, 1], atol=1e-9)
    np.testing.assert_allclose(found[1], -found[0])


def test_gripper_bins_on_one_side_do_not_deviate() -> None:
    units = ActionUnits.from_statistics(SPATIAL)
    assert units.deviations(np.full(7, 191), np.full(7, 255))[6] == 0
    assert units.deviations(np.full(7, 190), np.full(7, 191))[6] == -1


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_controller_that_does_not_move_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"milliradians is {scale}"):
        ControllerScale(milliradians=scale)


def test_statistics_of_another_robot_are_refused() -> None:
    with pytest.raises(ValueError, match="7 action dimensions, got 6"):
        ActionUnits.from_statistics(ActionStatistics(np.zeros(6), np.ones(6), np.ones(6, bool)))
