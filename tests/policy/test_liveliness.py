"""Action statistics: what counts as a repetition, and how far an action moves, in bins."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from policy.openvla.action_tokens import ActionStatistics
from policy.training.demonstrations import Demonstration, DemonstrationMeta
from policy.training.liveliness import DIMENSIONS, RADII, bin_range, liveliness

UNIT = ActionStatistics(
    q01=-np.ones(7), q99=np.ones(7), mask=np.array([True] * 6 + [False]), min=-np.ones(7), max=np.ones(7)
)
BIN = 2 / 255


def actions(bins_from_zero: list[int], gripper: float = 1.0) -> np.ndarray:
    """Actions whose first dimension is so many bins from zero, the others at rest."""
    episode = np.zeros((len(bins_from_zero), 7))
    episode[:, 0] = np.array(bins_from_zero) * BIN
    episode[:, 6] = gripper
    return episode


def test_distances_are_counted_in_bins_and_not_across_episodes():
    found = liveliness([actions([0, 0, 1, 4, 13]), actions([100, 100])], UNIT)
    first = found.dimensions[0]
    assert first.transitions == 5
    assert first.repeats == pytest.approx(2 / 5)
    assert first.within == pytest.approx((3 / 5, 4 / 5, 5 / 5))
    assert first.median == 1
    assert found.dimensions[1].repeats == 1.0
    assert found.whole == first, "only one dimension moves"
    assert set(first.row()) == {"transitions", "repeats", "median_bins", "p90_bins", *(f"within_{r}" for r in RADII)}


def test_a_switch_of_the_gripper_is_no_repetition():
    switch = np.concatenate([actions([0], gripper=1.0), actions([0], gripper=0.0)])
    assert liveliness([switch], UNIT).whole.repeats == 0.0


def test_nothing_moves_in_episodes_of_one_action():
    with pytest.raises(ValueError, match="none of the 1 episodes has two actions"):
        liveliness([actions([0])], UNIT)


def test_bins_span_all_but_the_outermost_percents():
    episodes = [np.random.default_rng(0).uniform(-2, 2, (5000, 7))]
    found = bin_range(episodes)
    np.testing.assert_allclose(found.q99, 1.96, atol=0.03)
    assert found.mask.tolist() == [True] * 6 + [False]


def demonstration(values: np.ndarray, seed: int, noise: float) -> Demonstration:
    steps = len(values)
    return Demonstration(
        DemonstrationMeta("libero_goal", 0, "open the drawer", seed, success=True, noise=noise),
        jpeg=np.zeros(0, np.uint8),
        jpeg_offsets=np.zeros(steps + 1, np.int64),
        actions=values.astype(np.float32),
        executed=values.astype(np.float32),
        privileged=np.zeros((steps, 10), np.float32),
        states=np.zeros((steps, 3)),
        pictured=np.zeros((steps, 1)),
        body_positions=np.zeros((1, 3)),
        body_quaternions=np.zeros((1, 4)),
    )


def test_the_script_writes_a_row_per_suite_noise_and_dimension(tmp_path):
    random = np.random.default_rng(0)
    for seed, noise in ((1000, 0.0), (1001, 0.25)):
        episode = demonstration(random.uniform(-1, 1, (20, 7)), seed, noise)
        episode.save(tmp_path / "demos" / episode.file_name)
    script, summary = Path(__file__).parents[2] / "scripts" / "action_statistics.py", tmp_path / "summary.json"
    subprocess.run([sys.executable, str(script), str(tmp_path / "demos"), "--summary", str(summary)], check=True)
    result = json.loads(summary.read_text())
    assert set(result["headline"]["whole_action_repeats"]) == {"libero_goal", "libero_goal with noise"}
    dimensions = [row["dimension"] for row in result["rows"] if row["noise"]]
    assert dimensions == [*DIMENSIONS, "all seven"]
    empty = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True)
    assert empty.returncode == 2
    assert "no demonstrations in" in empty.stderr
