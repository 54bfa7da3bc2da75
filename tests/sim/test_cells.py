import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from test_records import RECORD

from sim.cells import baseline_of, cells_of, rows_of
from sim.control_statistics import ControlStatistics
from sim.records import EndReason, EpisodeRecord, Outcome

CONTROL = ControlStatistics(
    simulated_s=5.0, ticks=100, decisions=25, holds=75, stale=80, dropped=1, deadline_misses=13, path_m=1.0, jerk=4.0
)


def episodes(
    outcomes: Sequence[bool], latency: float | None, decoder: str = "exact", drift: bool = False
) -> list[EpisodeRecord]:
    """One episode per initial state; latency: charged milliseconds, None for the lock-step clock."""
    changed = ("drift_mm_s=20 (official: 0.0)",) if drift else ()
    timing = () if latency is None else (f"latency {latency:g} ms",)
    return [
        replace(
            RECORD,
            init_state=state,
            decoder=decoder,
            clock="lock-step" if latency is None else "charged",
            timing=timing,
            protocol_deviations=changed,
            outcome=Outcome.SUCCESS if solved else Outcome.FAILURE,
            end_reason=EndReason.SOLVED if solved else EndReason.STEP_LIMIT,
            control=replace(CONTROL, simulated_s=4.0 + solved),
            decision_ms=(7.0 if latency is None else latency,) * 26,
        )
        for state, solved in enumerate(outcomes)
    ]


FAST, SLOW = episodes([True] * 8, None), episodes([True] * 2 + [False] * 6, 300.0)
MOVING = episodes([False] * 8, 300.0, drift=True)


def test_episodes_fall_into_cells():
    slow, fast, moving = SLOW, FAST, MOVING
    cells = cells_of([*slow, *fast, *moving, *slow])
    assert [(cell.world, cell.time, len(cell.records)) for cell in cells] == [
        ("libero_object", "lock-step", 8),
        ("libero_object", "charged, latency 300 ms", 8),
        ("libero_object, drift_mm_s=20", "charged, latency 300 ms", 8),
    ]
    assert [cell.injected for cell in cells] == [False, True, True]
    assert [cell.control_latency.p95_ms for cell in cells] == [0.0, 300.0, 300.0]  # lock-step waits for nobody
    assert baseline_of(cells[1], cells) is cells[0]
    assert baseline_of(cells[2], cells) is cells[2]


def test_figures_of_a_cell():
    fast, slow, _ = rows_of(cells_of([*SLOW, *FAST, *MOVING]))
    assert "baseline" not in fast
    assert (slow["baseline"], slow["paired_episodes"], slow["solved_only_by_baseline"]) == ("lock-step", 8, 6)
    assert slow["mcnemar_p"] == pytest.approx(2 * 0.5**6)
    assert (slow["successes"], slow["episodes"], slow["rate"]) == (2, 8, 0.25)
    assert slow["completion_s"] == 5.0  # of the solved ones
    assert slow["effective_hz"] == pytest.approx(8 * 25 / (2 * 5 + 6 * 4), abs=1e-3)
    assert (slow["stale_share"], slow["hold_share"], slow["holds_per_episode"]) == (0.8, 0.75, 75.0)
    assert slow["deadline_miss_share"] == 0.5
    assert (slow["path_m"], slow["jerk_m_s3"], slow["dropped"]) == (1.0, 4.0, 8)


def test_latencies_that_no_record_tells_are_unknown_rather_than_none():
    slow = [replace(record, decision_ms=()) for record in SLOW]
    known = episodes([True] * 8, 100.0)
    cells = {cell.time: cell for cell in cells_of([*known, *slow])}
    untold = cells["charged, latency 300 ms"]
    assert (untold.control_latency, untold.wait_ms) == (None, math.inf)
    assert baseline_of(untold, list(cells.values())) is cells["charged, latency 100 ms"]
    first, last = rows_of(list(cells.values()))
    assert "baseline" not in first
    assert (last["latency_p50_ms"], last["latency_p95_ms"], last["deadline_miss_share"]) == (None, None, None)
    assert last["baseline"] == "charged, latency 100 ms"
    assert baseline_of(untold, [untold]) is untold
    assert list(cells) == ["charged, latency 100 ms", "charged, latency 300 ms"]  # the unknown one comes last


def test_missed_deadlines_are_counted_where_decisions_are_known():
    some = [replace(record, decision_ms=()) if record.init_state else record for record in SLOW]
    (row,) = rows_of(cells_of(some))
    assert row["deadline_miss_share"] == 0.5
    assert row["latency_p50_ms"] == 300.0


def test_a_cell_is_of_one_number_format_and_one_setting_of_the_decoder():
    tuned, later = ([replace(record, decoding_digest=digest) for record in SLOW] for digest in ("d1", "d2"))
    half = [replace(record, dtype="bfloat16") for record in tuned]
    cells = cells_of([*tuned, *later, *half])
    assert [(cell.decoder, len(cell.records)) for cell in cells] == [
        ("exact, bfloat16, d1", 8),
        ("exact, float32, d1", 8),
        ("exact, float32, d2", 8),
    ]
    gone_on_with = [*SLOW[:5], *tuned[5:]]  # older records do not tell
    unborn = replace(SLOW[7], outcome=Outcome.ERROR, end_reason=EndReason.PROCESS_DIED, dtype="", init_state=8)
    (cell,) = cells_of([*gone_on_with, unborn])
    assert (cell.decoder, len(cell.records)) == ("exact", 9)


def test_replayed_and_drawn_latencies_are_not_injected():
    for words in ("trace eager 0a1b", "log-normal p50 60 ms p95 150 ms", "measured"):
        records = [replace(record, timing=(f"latency {words}",)) for record in SLOW]
        (cell,) = cells_of(records)
        assert not cell.injected
        assert cell.latency == words
