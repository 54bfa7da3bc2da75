from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from sim.latency import LatencyTrace, LogNormal, parse_latencies
from sim.timing import LOCK_STEP, Timing

TRACE = LatencyTrace((10.0, 20.0, 30.0), "policy", "exact", "cuda", "bfloat16")


def first(text: str, count: int = 5, episode: tuple[str, int, int] = ("fake", 0, 0), seed: int = 0) -> list[float]:
    latencies = parse_latencies(text).of_episode(*episode, seed)
    assert latencies is not None
    return list(islice(latencies, count))


def test_constant_and_measured():
    assert first("150") == [150.0] * 5
    assert parse_latencies("measured").of_episode("fake", 0, 0, 0) is None


def test_log_normal_has_its_quantiles_and_follows_episode_and_seed():
    drawn = first("lognormal:100,200", 4000)
    assert np.percentile(drawn, [50, 95]) == pytest.approx([100, 200], rel=0.05)
    assert drawn == first("lognormal:100,200", 4000)
    assert drawn[:5] != first("lognormal:100,200", seed=1)
    assert drawn[:5] != first("lognormal:100,200", episode=("fake", 0, 1))


def test_a_trace_is_entered_somewhere_and_starts_again(tmp_path):
    TRACE.save(tmp_path / "trace.json")
    assert LatencyTrace.load(tmp_path / "trace.json") == TRACE
    replayed = first(f"trace:{tmp_path}/trace.json", 9)
    assert replayed[:3] == replayed[3:6] == replayed[6:]
    assert sorted(replayed[:3]) == [10.0, 20.0, 30.0]
    entered = {first(f"trace:{tmp_path}/trace.json", 1, ("fake", 0, state))[0] for state in range(20)}
    assert entered == {10.0, 20.0, 30.0}


@pytest.mark.parametrize("bad", ["soon", "-1", "nan", "lognormal:5", "lognormal:20,10", "trace:", "trace:none.json"])
def test_what_is_no_latency_is_refused(bad):
    with pytest.raises(ValueError, match=r"latency|quantiles|trace"):
        parse_latencies(bad)


def test_files_of_something_else_are_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"milliseconds": [1]}')
    with pytest.raises(ValueError, match=r"x\.json is no latency trace"):
        parse_latencies(f"trace:{path}")
    with pytest.raises(ValueError, match="at least one decision"):
        replace(TRACE, milliseconds=())


def test_conditions_name_all_that_matters():
    assert LOCK_STEP.conditions() == ()
    assert Timing("charged").conditions() == ("latency measured",)
    assert Timing("charged", "150", hold=0.5, seed=3).conditions() == ("latency 150 ms", "hold=0.5", "seed=3")
    assert Timing("real-time", pipelined=True).conditions() == ("pipelined=True",)
    assert LogNormal(100, 200).describe() == "log-normal p50 100 ms p95 200 ms"


def test_a_trace_is_known_by_its_content(tmp_path):
    path: Path = tmp_path / "trace.json"
    TRACE.save(path)
    before = Timing("charged", f"trace:{path}").conditions()
    replace(TRACE, milliseconds=(1.0,)).save(path)
    assert Timing("charged", f"trace:{path}").conditions() != before


@pytest.mark.parametrize(
    "bad", [{"clock": "lunar"}, {"latency": "150"}, {"hold": 0.5}, {"clock": "real-time", "latency": "10"}]
)
def test_senseless_timings_are_refused(bad):
    with pytest.raises(ValueError, match=r"clock"):
        Timing(**bad)
