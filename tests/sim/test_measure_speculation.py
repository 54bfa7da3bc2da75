"""The report on speculation is made from the files of episodes alone."""

import json
import subprocess
import sys
from dataclasses import replace

from test_decoding_statistics import FAST, PLAIN
from test_records import ERROR, RECORD

from policy.openvla.checkpoint import checkpoint_hash
from policy.results import REPOSITORY
from sim.decoding_statistics import DecodingStatistics
from sim.records import EpisodeLog

BOX = REPOSITORY / "policy" / "pretrained" / "libero"


def test_a_report_without_time_to_run_anything(tmp_path):
    weights = checkpoint_hash(BOX)
    plain, fast, other = (EpisodeLog(tmp_path / f"{name}.jsonl") for name in ("autoregressive", "exact", "corrected"))
    for state in range(3):
        for log, trace in ((plain, PLAIN), (fast, FAST)):
            decoding = DecodingStatistics.of([trace] * 10)
            log.append(replace(RECORD, init_state=state, checkpoint_hash=weights, decoding=decoding))
    fast.append(replace(ERROR, init_state=3, checkpoint_hash=weights, device="", error="the server died"))
    other.append(replace(RECORD, checkpoint_hash="other weights"))
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
