"""Action values, token ids and robot units, there and back, as the original computes them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from policy.openvla.action_tokens import (
    ActionStatistics,
    ActionTokenizer,
    load_statistics,
    resolve_unnorm_key,
    select_statistics,
)

GOLDEN = Path(__file__).parents[1] / "data" / "golden-inputs"
CHECKPOINT = GOLDEN / "checkpoint"
TOKENS = np.load(GOLDEN / "action_tokenizer.npz")
ACTIONS = np.load(GOLDEN / "actions.npz")
ENTRY = {
    "q01": [-0.5, 0.0, 2.0, 0.0],
    "q99": [0.5, 0.0, 4.0, 1.0],
    "mask": [True, True, True, False],
    "min": [-1.0, 0.0, 1.0, 0.0],
    "max": [1.0, 0.0, 5.0, 1.0],
    "mean": [0.0, 0.0, 3.0, 0.5],
    "std": [0.3, 0.0, 0.7, 0.5],
}


@pytest.fixture
def only_config(tmp_path: Path) -> Path:
    """A checkpoint as published on the hub: statistics in config.json only."""
    shutil.copy(CHECKPOINT / "config.json", tmp_path)
    return tmp_path


@pytest.mark.golden
def test_tokenizer_equals_the_original() -> None:
    tokenizer = ActionTokenizer(int(TOKENS["vocab_size"]))
    np.testing.assert_array_equal(tokenizer.bins, TOKENS["bins"])
    np.testing.assert_array_equal(tokenizer.bin_centers, TOKENS["bin_centers"])
    np.testing.assert_array_equal(tokenizer.encode(TOKENS["values"]), TOKENS["token_ids"])
    np.testing.assert_array_equal(tokenizer.decode(TOKENS["token_ids"]), TOKENS["decoded"])
    np.testing.assert_array_equal(tokenizer.decode(TOKENS["probe_ids"]), TOKENS["probe_decoded"])


@pytest.mark.golden
def test_generated_ids_become_the_original_actions(only_config: Path) -> None:
    values = ActionTokenizer().decode(ACTIONS["generated_ids"])
    np.testing.assert_array_equal(values, ACTIONS["normalized_actions"])

    published = load_statistics(only_config)
    for key in ("libero_spatial", "bridge_orig"):
        found = select_statistics(published, key).unnormalize(values)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, ACTIONS[f"actions_{key}"], rtol=0, atol=1e-12)

    found = select_statistics(load_statistics(CHECKPOINT), "libero_spatial").unnormalize(values)
    expected = ACTIONS["actions_dataset_statistics_libero_spatial_no_noops"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.golden
@pytest.mark.parametrize("example", range(4))
def test_training_actions_become_the_original_ids(example: int) -> None:
    ids = ActionTokenizer().encode(ACTIONS[f"action_{example}"])
    np.testing.assert_array_equal(ids, ACTIONS[f"input_ids_{example}"][-8:-1])  # the end piece follows


def test_the_highest_id_is_the_lowest_value() -> None:
    tokenizer = ActionTokenizer(384)
    assert tokenizer.encode([-7.0, -1.0, 0.0, 1.0, 7.0]).tolist() == [383, 383, 256, 128, 128]
    assert tokenizer.first_id == 128
    decoded = tokenizer.decode([[383, 256], [129, 128]])
    np.testing.assert_allclose(decoded, [[-254 / 255, 0], [254 / 255, 254 / 255]], atol=1e-15)


def test_every_center_survives_the_round_trip() -> None:
    tokenizer = ActionTokenizer(384)
    np.testing.assert_array_equal(tokenizer.decode(tokenizer.encode(tokenizer.bin_centers)), tokenizer.bin_centers)


def test_tokenizer_refuses_what_it_cannot_count() -> None:
    with pytest.raises(ValueError, match=r"vocab_size is 255.*256"):
        ActionTokenizer(255)
    with pytest.raises(ValueError, match="numbers"):
        ActionTokenizer().encode([0.0, np.nan])


def test_units_there_and_back() -> None:
    statistics = ActionStatistics.from_json(ENTRY)
    np.testing.assert_allclose(statistics.normalize([[0.25, 0.0, 2.5, 0.7]]), [[0.5, 0.0, -0.5, 0.7]], atol=1e-7)
    np.testing.assert_allclose(statistics.normalize([9.0, 9.0, -9.0, 9.0]), [1.0, 0.0, -1.0, 9.0], atol=1e-7)
    np.testing.assert_allclose(statistics.unnormalize([0.5, 0.3, -0.5, 0.7]), [0.25, 0.0, 2.5, 0.7], atol=1e-15)


def test_without_a_mask_every_dimension_is_scaled() -> None:
    statistics = ActionStatistics.from_json({name: value for name, value in ENTRY.items() if name != "mask"})
    assert statistics.mask.all()
    assert statistics.unnormalize([0, 0, 0, 0.0])[3] == 0.5


def test_the_percentiles_alone_are_enough_to_act_but_not_to_train() -> None:
    statistics = ActionStatistics.from_json({"q01": [-2.0, 0.0], "q99": [2.0, 1.0], "mask": [True, False]})
    assert statistics.unnormalize([0.5, 0.3]).tolist() == [1.0, 0.3]
    with pytest.raises(ValueError, match="no min and max"):
        statistics.normalize([0.5, 0.3])


def test_statistics_cannot_be_changed_from_outside() -> None:
    q01 = np.array(ENTRY["q01"])
    statistics = ActionStatistics.from_json(ENTRY | {"q01": q01})
    q01[:] = 9
    assert statistics.q01.tolist() == ENTRY["q01"]
    with pytest.raises(ValueError, match="read-only"):
        statistics.q01[0] = 9
    assert {name: value.tolist() for name, value in asdict(statistics).items()} == ENTRY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q99": [0.5, 0.0]}, r"q99 must have one value per dimension like q01 \(4,\), got \(2,\)"),
        ({"q99": [0.5, 0.0, 1.0, 1.0]}, "q99 must not be below q01"),
        ({"q01": [np.nan] * 4}, "q01 must be finite"),
        ({"mask": [True]}, "mask must have one value per dimension"),
    ],
)
def test_impossible_statistics_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionStatistics.from_json(ENTRY | change)


def test_own_statistics_replace_those_of_the_config(only_config: Path) -> None:
    assert sorted(load_statistics(only_config)) == ["bridge_orig", "libero_spatial"]
    shutil.copy(CHECKPOINT / "dataset_statistics.json", only_config)
    assert sorted(load_statistics(only_config)) == ["libero_spatial_no_noops"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "no action statistics"),
        ('{"kitchen": {"proprio": {}}}', r"'kitchen' has no 'action' entry; it has \['proprio'\]"),
        ('{"kitchen": {"action": {"min": [0], "q99": [1]}}}', "'kitchen': action statistics have no q01"),
        ('{"kitchen": {"action": {"q01": [0], "q99": [NaN]}}}', "'kitchen': q99 must be finite"),
        ('{"kitchen": {"action": {"q01": 0, "q99": 1}}}', "'kitchen': "),
        ('{"kitchen": [1, 2]}', r"'kitchen' has no 'action' entry; it has \[1, 2\]"),
        ("[]", "no action statistics"),
    ],
)
def test_unusable_files_name_file_and_data_set(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "dataset_statistics.json").write_text(content)
    with pytest.raises(ValueError, match=rf"dataset_statistics.json.*{message}"):
        select_statistics(load_statistics(tmp_path), None)


def test_damage_that_does_not_matter_is_no_obstacle(tmp_path: Path) -> None:
    """Another data set's entry may be broken, and so may be what only describes the data."""
    action = {"q01": [0.0], "q99": [1.0], "std": [float("nan")], "max": [2.0]}
    content = {"broken": {"action": {"q01": [float("inf")], "q99": [1.0]}}, "mine": {"action": action}}
    (tmp_path / "dataset_statistics.json").write_text(json.dumps(content))
    statistics = load_statistics(tmp_path)
    assert sorted(statistics) == ["broken", "mine"]
    mine = select_statistics(statistics, "mine")
    assert mine.std is None
    assert mine.max == [2.0]
    with pytest.raises(ValueError, match=r"dataset_statistics.json: data set 'broken': q01 must be finite"):
        select_statistics(statistics, "broken")


def test_directory_without_statistics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither dataset_statistics.json nor config.json"):
        load_statistics(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "openvla"}))
    with pytest.raises(ValueError, match=r"config.json has no action statistics"):
        load_statistics(tmp_path)


def test_keys() -> None:
    statistics = ActionStatistics.from_json(ENTRY)
    one, two = {"libero_goal_no_noops": statistics}, {"bridge_orig": statistics, "libero_goal": statistics}
    assert resolve_unnorm_key(one, None) == "libero_goal_no_noops"
    assert resolve_unnorm_key(one, "libero_goal") == "libero_goal_no_noops"
    assert resolve_unnorm_key(one | two, "libero_goal") == "libero_goal"
    assert select_statistics(one, "libero_goal") is statistics
    with pytest.raises(ValueError, match=r"trained on 2 data sets.*bridge_orig, libero_goal"):
        resolve_unnorm_key(two, None)
    with pytest.raises(ValueError, match=r"'libero_10'.*bridge_orig, libero_goal"):
        resolve_unnorm_key(two, "libero_10")
