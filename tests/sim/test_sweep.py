from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from sim.latency import LatencyTrace
from sim.sweep import Row, Serving, SweepConfig


def sweep(**changes) -> SweepConfig:
    given = {"decodings": ("exact", "autoregressive"), "latencies": ("0", "lock-step", "real-time"), "hold": 0.5}
    return SweepConfig(Path("runs"), **given | changes)


def test_every_decoding_meets_every_latency_and_speed():
    chosen = sweep(rows={"eager": Row("autoregressive", "300")})
    found = {condition.file.name: condition for condition in chosen.conditions()}
    assert len(found) == 14
    eager = found["autoregressive-300-drift-20.jsonl"]
    assert eager == chosen.condition(chosen.rows["eager"], 20.0)
    assert (eager.serving, eager.protocol.drift_mm_s) == (Serving("autoregressive"), 20.0)
    assert eager.timing.conditions() == ("latency 300 ms", "hold=0.5")
    assert found["exact-lock-step-static.jsonl"].timing.clock == "lock-step"
    assert found["exact-real-time-static.jsonl"].timing.conditions() == ("hold=0.5",)


def test_rows_may_have_shorter_ticks():
    chosen = sweep(rows={"eager": Row("autoregressive", "300")}, row_hz=100)
    rates = {condition.file.stem: condition.protocol.control_hz for condition in chosen.conditions()}
    assert rates.pop("autoregressive-300-static") == rates.pop("autoregressive-300-drift-20") == 100
    assert set(rates.values()) == {20}
    assert sweep(rows=chosen.rows).condition(chosen.rows["eager"], 0).protocol.control_hz == 20
    with pytest.raises(ValueError, match="30"):
        replace(chosen, row_hz=30)


def test_rows_wait_for_their_traces(tmp_path):
    trace = tmp_path / "traces" / "fp8.json"
    chosen = sweep(rows={"fp8": Row("exact", f"trace:{trace}", "fp8"), "eager": Row("exact", "300")})
    assert chosen.untraced() == {"fp8": trace}
    assert len(chosen.conditions()) == 14
    LatencyTrace((1.0,), "policy", "exact", "cuda", "bfloat16").save(trace)
    assert chosen.untraced() == {}
    first = chosen.conditions()[0]
    assert (first.file.name, first.serving) == ("exact-fp8-trace-fp8-static.jsonl", Serving("exact", "fp8"))


def test_things_drift_only_where_they_can():
    chosen = sweep(suites=("libero_10", "libero_object"), latencies=("0",), decodings=("exact",))
    assert [condition.suites for condition in chosen.conditions()] == [
        ("libero_10", "libero_object"),
        ("libero_object",),
    ]
    with pytest.raises(ValueError, match="nothing drifts in libero_10; add one of the moving_suites"):
        replace(chosen, suites=("libero_10",))


def test_parts_are_all_there_is_to_run_rows_first_and_latencies_mixed():
    chosen = sweep(rows={"eager": Row("autoregressive", "300")}, latencies=("0", "100", "200"), decodings=("exact",))
    parts = chosen.parts(1)
    assert len(parts) == len({(part.condition.file, part.suite) for part in parts}) == 16
    assert [part.condition.serving.decoding for part in parts[:5]] == ["autoregressive"] * 4 + ["exact"]
    begins: dict[tuple[str, float], str] = {}
    for part in parts[4:]:
        begins.setdefault((part.suite, part.condition.protocol.drift_mm_s), part.condition.timing.latency)
    assert list(begins.values()) == ["0", "100", "200", "0"]


def test_a_decoding_has_a_server_and_more_for_most_of_the_latencies():
    rows = {"eager": Row("autoregressive", "300"), "exact": Row("exact", "21"), "fp8": Row("default", "9", "fp8")}
    chosen = sweep(rows=rows, decodings=("default",), latencies=tuple(map(str, range(9))))
    assert chosen.servers(1) == dict.fromkeys(chosen.servers(1), 1)
    assert chosen.servers(4) == {
        Serving("autoregressive"): 1,
        Serving("exact"): 1,
        Serving("default", "fp8"): 1,
        Serving("default"): 3,
    }
    dealt = Counter(part.server for part in chosen.parts(4) if part.condition.serving == Serving("default"))
    assert dealt == {0: 12, 1: 12, 2: 12}
    files: dict[Path, set[int]] = {}
    for part in chosen.parts(4):
        files.setdefault(part.condition.file, set()).add(part.server)
    assert {len(servers) for servers in files.values()} == {1}  # an episode must not be in two evaluations


@pytest.mark.parametrize(
    "bad",
    [
        {"suites": ()},
        {"decodings": ()},
        {"latencies": ("soon",)},
        {"tasks": "x"},
        {"timed_suite": "libero_object", "decodings": (), "rows": {"a": Row("exact", "0")}},
    ],
)
def test_senseless_sweeps_are_refused(bad):
    with pytest.raises(ValueError, match=r"name at least|latency|neither a number|name one"):
        sweep(**bad)
