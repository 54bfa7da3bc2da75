"""A sweep's result is made from the files of episodes alone, and says what is still missing."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_records import RECORD

from policy.decoding.config import DecodingConfig
from policy.results import REPOSITORY
from policy.types import PolicySpec
from sim.latency import LatencyTrace
from sim.records import EndReason, EpisodeLog, EpisodeRecord, Outcome
from sim.served_checkpoint import ServedCheckpoint
from sim.sweep import Condition, Row, Serving, SweepConfig
from sim.sweep_result import SweepResult, busy_seconds

BOX = REPOSITORY / "policy" / "pretrained" / "libero"
SUCCESS, FAILURE = Outcome.SUCCESS, Outcome.FAILURE


def spec_of(serving: Serving) -> PolicySpec:
    """The policy of these episodes, whatever it is asked to decode by."""
    return PolicySpec("policy", "abc", RECORD.unnorm_key, dtype="float32", decoding_digest="aaa")


def sweep(folder: Path) -> SweepConfig:
    traces = {name: folder / "traces" / f"{name}.json" for name in ("eager", "exact", "fp8")}
    for name, milliseconds in (("eager", 300.0), ("exact", 21.0)):
        LatencyTrace((milliseconds,), "big", name, "cuda", "bfloat16").save(traces[name])
    return SweepConfig(
        folder,
        latencies=("0",),
        rows={name: Row("autoregressive", f"trace:{trace}") for name, trace in traces.items()},
        suites=("libero_object",),
        tasks="0",
        initial_states="0-3",
        timed_suite="libero_object",
        timed_states="0-4",
    )


def episode(condition: Condition, state: int, outcome: Outcome, weights: str = "abc") -> EpisodeRecord:
    ends = {Outcome.SUCCESS: EndReason.SOLVED, Outcome.FAILURE: EndReason.STEP_LIMIT}
    return replace(
        RECORD,
        task=0,
        init_state=state,
        checkpoint_hash=weights,
        clock=condition.timing.clock,
        timing=condition.timing.conditions(),
        protocol_deviations=condition.protocol.deviations(),
        outcome=outcome,
        end_reason=ends.get(outcome, EndReason.PROCESS_DIED),
        error="it fell" if outcome is Outcome.ERROR else "",
        decision_ms=(300.0,),
        seconds=9.5,
        finished_at=f"2026-01-01T00:00:{10 + 2 * state:02d}+00:00",
    )


def test_the_headline_has_what_was_measured_and_the_rest_is_named(tmp_path):
    chosen = sweep(tmp_path)
    eager, moving = (chosen.condition(chosen.rows["eager"], drift) for drift in (0.0, 20.0))
    log = EpisodeLog(eager.file)
    for state, outcome in enumerate((FAILURE, SUCCESS, SUCCESS, SUCCESS)):
        log.append(episode(eager, state, outcome))
        log.append(replace(episode(eager, state, SUCCESS), timing=("latency trace eager before",)))
        log.append(episode(eager, state, SUCCESS, weights="other"))
        for changed in ({"decoder": "mine"}, {"decoding_digest": "bbb"}, {"unnorm_key": "b"}, {"dtype": "bfloat16"}):
            log.append(replace(episode(eager, state, SUCCESS), **changed))
        log.append(replace(episode(eager, state, SUCCESS), task=1))
    log = EpisodeLog(moving.file)
    for state, outcome in enumerate((SUCCESS, Outcome.ERROR)):
        log.append(episode(moving, state, outcome))
    result = SweepResult(chosen, spec_of)
    assert len(result.records()) == 6
    assert result.headline() == {
        "static": {"eager": 0.75, "exact": None, "fp8": None},
        "moving": {"eager": 1.0, "exact": None, "fp8": None},
        "suite_seconds": None,
    }
    assert list(result.missing()) == [
        "row eager, moving: 1 of 4 episodes yet; 1 errors, the last: it fell",
        "row exact, static: none of 4 episodes yet",
        "row exact, moving: none of 4 episodes yet",
        f"row fp8 has no trace {tmp_path}/traces/fp8.json yet; record it with scripts/record_latency.py",
        "latencies that are no rows: none of 8 episodes yet",
        "libero_object alone, for suite_seconds: none of 5 episodes yet",
    ]


def test_a_suite_takes_as_long_as_its_episodes_side_by_side(tmp_path):
    chosen = sweep(tmp_path)
    log = EpisodeLog(chosen.timed().file)
    for state in range(4):
        log.append(episode(chosen.timed(), state, SUCCESS))
    assert SweepResult(chosen, spec_of).headline()["suite_seconds"] is None
    late = replace(episode(chosen.timed(), 4, FAILURE), finished_at="2026-01-01T01:00:00+00:00")
    log.append(late)
    # From 0.5 s to 16 s without a pause, and 9.5 s an hour later.
    assert busy_seconds(log.records) == pytest.approx(15.5 + 9.5)
    assert SweepResult(chosen, spec_of).headline()["suite_seconds"] == 2500.0


def test_what_lies_between_two_episodes_of_one_run_takes_time_too():
    record = replace(RECORD, seconds=2.0)
    ends = [
        replace(record, finished_at=f"2026-01-01T00:00:{second}+00:00") for second in ("02.000", "05.250", "08.000")
    ]
    assert busy_seconds(ends) == pytest.approx(8.0)
    again = replace(record, finished_at="2026-01-01T00:01:30.500+00:00")
    assert busy_seconds([*ends, again]) == pytest.approx(8.0 + 2.0)


def script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/sweep_latency.py", *arguments, "--time-limit", "0", "--sweep.runs", str(folder)]
    output = ["--output", str(folder / "latency.json")]
    return subprocess.run([*command, *output], cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["latency", "latency-laptop"])
def test_configurations_in_the_box_are_understood(tmp_path, name):
    finished = script(tmp_path, "--config", f"configs/eval/{name}.yaml")
    assert finished.returncode == 1
    assert f"{tmp_path} has no episodes of this policy yet; give more time" in finished.stderr
    assert "latencies that are no rows: none of" in finished.stdout
    assert not list(tmp_path.iterdir())


def test_a_result_without_time_to_run_anything(tmp_path):
    chosen = SweepConfig(tmp_path, latencies=("300",), rows={"slow": Row("default", "300")}, drifts=(0.0,))
    slow = chosen.condition(chosen.rows["slow"], 0.0)
    log = EpisodeLog(slow.file)
    box = os.path.relpath(BOX, REPOSITORY)
    spec = ServedCheckpoint.locate(box, None, ["auto"]).spec_of(DecodingConfig.load("default"))
    names = ("policy_id", "checkpoint_hash", "unnorm_key", "decoder", "decoding_digest", "dtype")
    served = {name: getattr(spec, name) for name in names}
    for state, outcome in enumerate((FAILURE, SUCCESS)):
        log.append(replace(episode(slow, state, outcome), **served))
        log.append(replace(episode(slow, state, SUCCESS), **served | {"decoding_digest": "of other settings"}))
    options = {"latencies": '["300"]', "rows": '{"slow": {"decoding": "default", "latency": "300"}}', "drifts": "[0]"}
    finished = script(tmp_path, *(word for name, text in options.items() for word in (f"--sweep.{name}", text)))
    assert finished.returncode == 0, finished.stderr
    assert "missing: row slow, static: 2 of 400 episodes yet" in finished.stdout
    result = json.loads((tmp_path / "latency.json").read_text())
    assert result["headline"] == {"static": {"slow": 0.5}, "moving": {}, "suite_seconds": None}
    assert [(row["episodes"], row["latency_p50_ms"]) for row in result["rows"]] == [(2, 300.0)]


def test_from_a_trace_to_a_page(tmp_path):
    LatencyTrace((120.0, 90.0), "big", "default", "cuda", "bfloat16").save(tmp_path / "traces" / "relaxed.json")
    config = tmp_path / "tiny.yaml"
    config.write_text(
        f"""
        sweep:
          latencies: ["0"]
          rows: {{relaxed: {{decoding: default, latency: "trace:{tmp_path}/traces/relaxed.json"}}}}
          drifts: [0]
          suites: [fake]
          tasks: 0-1
          initial_states: "0"
          timed_suite: fake
          timed_states: "1"
          runs: {tmp_path}/runs
        servers: 2
        workers: 2
        output: {tmp_path}/latency.json
        """
    )
    sweep, report = ([sys.executable, f"scripts/{name}.py"] for name in ("sweep_latency", "report"))
    for _ in range(2):  # the second time nothing is left to be run
        finished = subprocess.run([*sweep, "--config", config], cwd=REPOSITORY, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
        assert "missing" not in finished.stdout
    headline = json.loads((tmp_path / "latency.json").read_text())["headline"]
    assert headline["static"]["relaxed"] in (0.0, 0.5, 1.0)
    assert 0 < headline["suite_seconds"] < 500 * 60
    files = sorted((tmp_path / "runs").glob("*.jsonl"))
    assert [(file.stem, len(EpisodeLog(file).records)) for file in files] == [
        ("default-0-static", 2),
        ("default-lock-step-fake-alone", 2),
        ("default-trace-relaxed-static", 2),
    ]
    subprocess.run([*report, tmp_path / "runs"], cwd=REPOSITORY, check=True, capture_output=True)
    assert "relaxed (default)" in (tmp_path / "runs" / "report" / "index.html").read_text()
