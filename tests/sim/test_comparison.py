from dataclasses import replace

import numpy as np
import pytest
from test_decoding_statistics import FAST, HELD, PLAIN
from test_records import ERROR, RECORD

from sim.comparison import comparison_rows
from sim.comparison_plot import plot_passes_and_success
from sim.decoding_statistics import DecodingStatistics
from sim.records import EndReason, Outcome

SIZES = np.array([0.5, 0.25, 0.5, 2.0, 2.0, 2.0, np.nan])


def episode(state: int, solved: bool, trace, suite: str = "libero_object"):
    ending = (Outcome.SUCCESS, EndReason.SOLVED) if solved else (Outcome.FAILURE, EndReason.STEP_LIMIT)
    decoding = DecodingStatistics.of([trace] * 10)
    return replace(RECORD, suite=suite, init_state=state, outcome=ending[0], end_reason=ending[1], decoding=decoding)


@pytest.fixture
def rows():
    plain = [episode(state, state != 3, PLAIN) for state in range(4)] + [episode(0, True, PLAIN, "libero_spatial")]
    fast = [episode(state, state > 0, FAST if state > 0 else HELD) for state in range(4)]
    fast += [episode(0, True, FAST, "libero_spatial"), replace(ERROR, init_state=9)]
    return comparison_rows({"autoregressive": plain, "fast": fast}, "autoregressive", SIZES)


def test_rows_by_decoder_and_suite(rows):
    assert [(row["decoding"], row["suite"]) for row in rows] == [
        (name, suite) for name in ("autoregressive", "fast") for suite in ("libero_object", "libero_spatial", "all")
    ]
    fast = rows[3]
    assert (fast["successes"], fast["episodes"], fast["errors"]) == (3, 4, 1)
    assert (fast["solved_only_here"], fast["solved_only_by_baseline"], fast["points"]) == (1, 1, 0.0)
    assert fast["mcnemar_p"] == 1.0
    assert (fast["passes_of_solved"], fast["passes_of_failed"]) == (1, 2)
    assert fast["passes"] == pytest.approx(1.25)
    assert rows[0]["points"] == 0
    assert rows[0]["passes"] == 7


def test_deviation_is_in_millimetres_and_milliradians(rows):
    deviation = rows[4]["deviation_mean"]
    assert deviation["dy_mm"] == 2 * 0.25
    assert rows[4]["deviation_signed"]["dy_mm"] == -2 * 0.25
    assert rows[4]["deviation_max"]["dz_mm"] == 3 * 0.5
    assert deviation["gripper_bins"] == 0


@pytest.mark.parametrize(("second", "expected"), [((30.0, 50.0), 30.0), ((), None)])
def test_latency_is_of_all_episodes_or_not_told(second, expected):
    episodes = [replace(episode(0, True, PLAIN), decision_ms=(10.0, 20.0, 40.0))]
    episodes.append(replace(episode(1, True, PLAIN), decision_ms=second))
    row = comparison_rows({"autoregressive": episodes}, "autoregressive", SIZES)[0]
    assert row["latency_p50_ms"] == expected


def test_plot_is_written(rows, tmp_path):
    plot_passes_and_success(rows, {"all": ["autoregressive", "fast", "absent"]}, tmp_path / "new" / "plot.png")
    assert (tmp_path / "new" / "plot.png").stat().st_size > 1000
