"""Every drafter has its rows, and the few numbers told of all rows are theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from policy.benchmark.drafter_episodes import choose_demonstrations, split_of
from policy.benchmark.drafter_rows import PLAIN, drafter_configs, drafter_headline, fastest_exact, further_tokens
from policy.drafting.registry import trained_drafters
from policy.training.episode_choice import held_out_names


def row(name: str, milliseconds: float, passes: float = 2.0, **others: Any) -> dict[str, Any]:
    return {
        "decoding": name,
        "mean_ms": milliseconds,
        "passes": passes,
        "first_pass_tokens": 1.0,
        "acceptance": "exact",
        "drafters": (),
        "head": None,
    } | others


def test_drafters_without_weights_have_no_rows() -> None:
    names = [config.name for config in drafter_configs([])]
    assert names == [PLAIN, "exact", "previous alone", "motion alone", "retrieval alone", "default"]
    everything = drafter_configs(["draft-vla", "eagle", "parallel"])
    names = [config.name for config in everything]
    assert len(set(names)) == len(names)
    assert {"draft-vla alone", "eagle alone, r=9", "exact + draft-vla + parallel", "default + eagle"} <= set(names)
    assert names[-2:] == ["spec-vla-paper-strict", "spec-vla-paper"]
    assert {config.acceptance for config in everything if config.name.startswith("default")} == {"corrected"}


def test_weights_are_found_beside_the_target_or_where_told(tmp_path: Path) -> None:
    (tmp_path / "drafters" / "eagle").mkdir(parents=True)
    assert trained_drafters(tmp_path, {}) == ["eagle"]
    assert trained_drafters(tmp_path, {"draft-vla": Path("elsewhere")}) == ["draft-vla", "eagle"]


def test_tokens_of_further_passes() -> None:
    assert further_tokens({"passes": 3.0, "first_pass_tokens": 3.0}) == 2.0
    none = further_tokens({"passes": 1.0, "first_pass_tokens": 7.0})
    assert none is None
    json.dumps({"further_tokens": none}, allow_nan=False)  # as results are written


def test_the_headline_takes_the_best_trained_row_under_exact_acceptance() -> None:
    rows = [
        row(PLAIN, 30.0, 7.0, acceptance=""),
        row("exact", 20.0),
        row("exact + draft-vla", 16.0, drafters=("previous", "draft-vla")),
        row("exact + eagle", 17.0, head="eagle"),
        row("default + eagle", 11.0, acceptance="corrected", head="eagle"),
        row("eagle alone", 25.0, 4.0, head="eagle"),
        row("eagle alone, r=9", 20.0, 3.0, head="eagle", acceptance="spec-vla"),
        row("spec-vla-paper", 24.0, head="eagle", acceptance="spec-vla"),
    ]
    assert drafter_headline(rows) == {
        "fastest_exact": "exact + draft-vla",
        "plain_ms": 30.0,
        "untrained_exact_ms": 20.0,
        "best_trained_exact_ms": 16.0,
        "head_accept_length_exact": pytest.approx(2.0),
        "head_accept_length_r9": pytest.approx(3.0),
        "spec_vla_rerun_strict_ratio": None,
        "spec_vla_rerun_relaxed_ratio": pytest.approx(1.25),
    }
    assert set(drafter_headline([row("default", 30.0, acceptance="corrected")]).values()) == {None}


def test_plain_decoding_may_be_the_fastest() -> None:
    rows = [row(PLAIN, 15.0, 7.0, acceptance=""), row("exact", 20.0), row("default", 5.0, acceptance="corrected")]
    assert drafter_headline(rows)["fastest_exact"] == PLAIN
    assert fastest_exact(rows[2:]) is None


PATHS = [Path(f"libero_goal_task{number % 10:02d}_seed{number}.npz") for number in range(200)]


def test_drafters_are_judged_on_what_training_holds_out() -> None:
    held_out = held_out_names((path.name for path in PATHS), 10)
    judged = choose_demonstrations(PATHS, 10, count=5, warming=1)
    assert {path.name for path in (*judged.warming, *judged.measured)} <= held_out
    assert (len(judged.warming), len(judged.measured), judged.held_out) == (1, 5, [True] * 5)
    everything = choose_demonstrations(PATHS, 10, count=200, warming=1, take_all=True)
    assert (len(everything.measured), sum(everything.held_out)) == (199, len(held_out - {PATHS[0].name}))


def test_others_warm_where_one_is_held_out() -> None:
    judged = choose_demonstrations(PATHS[:2], 1000, count=10, warming=1)
    assert len(judged.measured) == len(judged.warming) == sum(judged.held_out) == 1
    assert judged.measured != judged.warming
    with pytest.raises(ValueError, match="1 demonstrations leave none to measure with"):
        choose_demonstrations(PATHS[:1], 20, count=10, warming=1)


def test_the_split_is_that_of_the_drafters_training(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("eagle", "parallel", "draft-vla")]
    assert split_of(folders) == 20
    for folder, every in zip(folders, (7, 7, 5), strict=True):
        (tmp_path / f"{folder.name}-training").mkdir()
        (tmp_path / f"{folder.name}-training" / "config.json").write_text(json.dumps({"held_out_every": every}))
    assert split_of(folders[:2]) == 7
    with pytest.raises(ValueError, match=r"1 in 7 .*1 in 5 .*; give --held-out-every"):
        split_of(folders)
