import msgspec
import numpy as np
import pytest

from policy.types import DecodeTrace
from sim.decoding_statistics import DecodingStatistics

PLAIN = DecodeTrace(7, (1,) * 7, ("",) * 7, (0,) * 7, sources=("",) * 7)
FAST = DecodeTrace(
    1, (7,), ("previous+motion",), (0, -2, 3, 0, 0, 0, 0), sources=("previous",) * 4 + ("motion",) * 2 + ("",)
)
HELD = DecodeTrace(
    2, (3, 4), ("motion", ""), (0, 1, 0, 0, 0, 0, 0), sources=("motion",) * 2 + ("",) * 5, forced=("stall",)
)


def test_sums_of_an_episode():
    statistics = DecodingStatistics.of([PLAIN, FAST, HELD, FAST])
    assert statistics.actions == 4
    assert statistics.passes == (2, 1, 0, 0, 0, 0, 1)
    assert statistics.mean_passes == (7 + 1 + 2 + 1) / 4
    assert statistics.gained == (1 + 7 + 3 + 7, 1 + 4, 1, 1, 1, 1, 1)
    assert statistics.drafted == (3, 3, 2, 2, 2, 2, 0)
    assert statistics.drafters == {"previous": 8, "motion": 6}
    assert statistics.signed_deviation == (0, -3, 6, 0, 0, 0, 0)
    assert statistics.absolute_deviation == (0, 5, 6, 0, 0, 0, 0)
    assert statistics.largest_deviation == (0, 2, 3, 0, 0, 0, 0)
    assert statistics.forced == {"stall": 1}


def test_episodes_add_up_to_what_their_actions_are_together():
    parts = [[PLAIN, FAST], [HELD], [FAST, FAST, PLAIN]]
    total = DecodingStatistics.total(DecodingStatistics.of(part) for part in parts)
    assert total == DecodingStatistics.of([trace for part in parts for trace in part])
    assert msgspec.json.decode(msgspec.json.encode(total), type=DecodingStatistics) == total


def test_row_holds_means_and_shares():
    row = DecodingStatistics.of([PLAIN, FAST, HELD, FAST]).row()
    assert row["passes_share"] == [0.5, 0.25, 0, 0, 0, 0, 0.25]
    assert row["tokens_per_pass"] == [4.5, 2.5, 1, 1, 1, 1, 1]
    assert row["accepted_by_dimension"] == [0.75, 0.75, 0.5, 0.5, 0.5, 0.5, 0]
    assert row["drafter_share"] == {"motion": 0.4286, "previous": 0.5714}
    assert row["deviation_signed_bins"][1] == -0.75
    assert row["forced_share"] == {"stall": 0.25}
    assert DecodingStatistics.of([FAST]).row()["tokens_per_pass"] == [7] + [None] * 6


def test_a_policy_without_tokens_has_no_statistics():
    assert DecodingStatistics.of([DecodeTrace(0), DecodeTrace(0)]) is None


def test_numbers_are_plain_integers():
    assert all(type(value) is int for value in DecodingStatistics.of([PLAIN]).passes)
    with pytest.raises(TypeError):
        msgspec.json.encode({"n": np.int64(1)})
