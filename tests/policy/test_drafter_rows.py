"""Every drafter has its rows, and the few numbers told of all rows are theirs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from policy.benchmark.drafter_rows import PLAIN, drafter_configs, drafter_headline, further_tokens
from policy.drafting.registry import trained_drafters


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
    assert math.isnan(further_tokens({"passes": 1.0, "first_pass_tokens": 7.0}))


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
        "untrained_exact_ms": 20.0,
        "best_trained_exact_ms": 16.0,
        "head_accept_length_exact": pytest.approx(2.0),
        "head_accept_length_r9": pytest.approx(3.0),
        "spec_vla_rerun_strict_ratio": None,
        "spec_vla_rerun_relaxed_ratio": pytest.approx(1.25),
    }
    assert set(drafter_headline([row(PLAIN, 30.0, acceptance="")]).values()) == {None}
