"""The report on speculation is made from the files of episodes alone."""

import json
import subprocess
import sys
from dataclasses import replace

from test_decoding_statistics import FAST, PLAIN
from test_records import ERROR, RECORD

from policy.decoding.config import DecodingConfig
from policy.results import REPOSITORY
from sim.decoding_statistics import DecodingStatistics
from sim.records import EpisodeLog
from sim.served_checkpoint import ServedCheckpoint

BOX = REPOSITORY / "policy" / "pretrained" / "libero"


def served(decoding: str) -> dict[str, str]:
    """What records tell of the policy in the box, decoded so on this machine."""
    spec = ServedCheckpoint.locate(str(BOX), None, ["auto"]).spec_of(DecodingConfig.load(decoding))
    names = ("policy_id", "checkpoint_hash", "unnorm_key", "decoder", "decoding_digest", "dtype")
    return {name: getattr(spec, name) for name in names}


def test_a_report_without_time_to_run_anything(tmp_path):
    logs = {name: EpisodeLog(tmp_path / f"{name}.jsonl") for name in ("autoregressive", "exact", "corrected")}
    for name, trace in (("autoregressive", PLAIN), ("exact", FAST)):
        decoding, own = DecodingStatistics.of([trace] * 10), served(name)
        for state in range(3):
            logs[name].append(replace(RECORD, **own, init_state=state, decoding=decoding))
            logs[name].append(replace(RECORD, **own | {"decoding_digest": "of other settings"}, init_state=state))
    untold = served("exact") | {"dtype": ""}
    logs["exact"].append(replace(ERROR, **untold, init_state=3, device="", error="the server died"))
    logs["corrected"].append(replace(RECORD, **served("corrected") | {"checkpoint_hash": "other weights"}))
    logs["corrected"].append(replace(RECORD, **served("corrected") | {"dtype": "bfloat16, fp8 layers"}))
    script = [sys.executable, "scripts/measure_speculation.py", "--checkpoint", str(BOX), "--time-limit", "0"]
    finished = subprocess.run(
        [*script, "--runs", str(tmp_path), "--output", str(tmp_path / "result.json")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert "exact: 1 errors, to be repeated by the same command; the last: the server died" in finished.stdout
    rows = {row["decoding"]: row for row in json.loads((tmp_path / "result.json").read_text())["rows"]}
    assert {name: (row["episodes"], row["errors"], row["passes"]) for name, row in rows.items()} == {
        "autoregressive": (3, 0, 7),
        "exact": (3, 1, 1),
    }
    assert rows["exact"]["device"] == RECORD.device
    assert (tmp_path / "result.png").stat().st_size > 1000
    assert sorted(file.suffix for file in tmp_path.iterdir() if file.suffix in (".yaml", ".log")) == []


def test_decodings_of_ones_own_choice_are_quoted_one_by_one(tmp_path):
    for name, trace, milliseconds in (("autoregressive", PLAIN, 30.0), ("default", FAST, 12.0)):
        log = EpisodeLog(tmp_path / f"{name}.jsonl")
        decoding, told = DecodingStatistics.of([trace] * 10), (milliseconds,) * 10
        log.append(replace(RECORD, **served(name), decoding=decoding, decision_ms=told))
    script = [sys.executable, "scripts/measure_speculation.py", "--checkpoint", str(BOX), "--time-limit", "0"]
    files = ["--runs", str(tmp_path), "--output", str(tmp_path / "result.json")]
    finished = subprocess.run(
        [*script, "--decodings", "default", *files], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    headline = json.loads((tmp_path / "result.json").read_text())["headline"]
    assert {
        name: (quoted["rate"], quoted["passes"], quoted["latency_p99_ms"]) for name, quoted in headline.items()
    } == {
        "autoregressive": (1.0, 7, 30.0),
        "default": (1.0, 1, 12.0),
    }
    both = [*script, "--decodings", "default", "--groups", "rules", *files]
    refused = subprocess.run(both, cwd=REPOSITORY, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "give --groups or --decodings, not both" in refused.stderr
