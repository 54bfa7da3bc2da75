from pathlib import Path

import pytest

from sim.sweep import Row, SweepConfig


def test_every_decoding_meets_every_latency_and_speed():
    sweep = SweepConfig(
        Path("runs"),
        decodings=("exact", "autoregressive"),
        latencies=("0", "lock-step", "real-time"),
        rows={"eager": Row("autoregressive", "300")},
        drifts=(0.0, 20.0),
        hold=0.5,
    )
    found = {condition.file.name: condition for condition in sweep.conditions()}
    assert len(found) == 14
    eager = found["autoregressive-300-drift-20.jsonl"]
    assert eager == sweep.condition(sweep.rows["eager"], 20.0)
    assert (eager.decoding, eager.protocol.drift_mm_s) == ("autoregressive", 20.0)
    assert eager.timing.conditions() == ("latency 300 ms", "hold=0.5")
    assert found["exact-lock-step-static.jsonl"].timing.clock == "lock-step"
    assert found["exact-real-time-static.jsonl"].timing.conditions() == ("hold=0.5",)
    # A policy is loaded once for all conditions of its decoding.
    order = [condition.decoding for condition in sweep.conditions()]
    assert order == sorted(order)


@pytest.mark.parametrize("bad", [{"suites": ()}, {"decodings": ()}, {"latencies": ("soon",)}, {"tasks": "x"}])
def test_senseless_sweeps_are_refused(bad):
    with pytest.raises(ValueError, match=r"name at least|latency|neither a number"):
        SweepConfig(Path("runs"), **bad)
