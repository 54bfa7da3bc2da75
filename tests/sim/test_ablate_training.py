"""What a table of ablations says, made from runs that are there already."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from policy.results import REPOSITORY
from policy.training.demonstrations import Demonstration, DemonstrationMeta


def driven(seed: int, success: bool) -> Demonstration:
    return Demonstration(
        DemonstrationMeta("libero_goal", 1, "put the bowl away", seed, success, driver="policy"),
        jpeg=np.zeros(0, np.uint8),
        jpeg_offsets=np.zeros(3, np.int64),
        actions=np.zeros((2, 7), np.float32),
        executed=np.zeros((2, 7), np.float32),
        privileged=np.zeros((2, 10), np.float32),
        states=np.zeros((2, 3)),
        pictured=np.zeros((2, 1)),
        body_positions=np.zeros((1, 3)),
        body_quaternions=np.zeros((1, 4)),
    )


def made_run(run: Path, solved: list[bool]) -> None:
    run.mkdir()
    (run / "trained").touch()
    line = {"step": 7, "seconds": 3.5, "frames": 90, "episodes": 3, "train": {"pose": 2.0}, "held_out": {"pose": 2.5}}
    (run / "metrics.jsonl").write_text(
        json.dumps(line) + "\n" + json.dumps(line | {"step": 8, "held_out": None}) + "\n"
    )
    for seed, success in enumerate(solved, start=5000):
        episode = driven(seed, success)
        episode.save(run / "driven" / episode.file_name)


def test_variants_are_compared_episode_by_episode(tmp_path: Path) -> None:
    made_run(tmp_path / "recipe", [True, True, True, False])
    made_run(tmp_path / "no-noise", [True, False, False, False])
    variants = {"recipe": {}, "no noise": {"average_decay": 0.5}}
    script = [sys.executable, "scripts/ablate_training.py", "--episodes", "0", "--variants", json.dumps(variants)]
    files = ["--runs", str(tmp_path), "--output", str(tmp_path / "result.json")]
    finished = subprocess.run([*script, *files], cwd=REPOSITORY, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["headline"] == {"recipe": 0.75, "no noise": 0.25}
    row = result["rows"][1]
    assert (row["changes"], row["step"], row["held_out"]) == ({"average_decay": 0.5}, 8, {"pose": 2.5})
    assert (row["successes"], row["episodes_driven"], row["against_first_only_second"]) == (1, 4, 2)
    assert "1/4" in finished.stdout


def test_what_was_trained_is_told_although_a_later_variant_fails(tmp_path: Path) -> None:
    made_run(tmp_path / "recipe", [True, False])
    variants = {"recipe": {}, "broken": {"batch_size": 0}}
    script = [sys.executable, "scripts/ablate_training.py", "--episodes", "0", "--variants", json.dumps(variants)]
    files = ["--runs", str(tmp_path), "--output", str(tmp_path / "result.json")]
    finished = subprocess.run([*script, *files], cwd=REPOSITORY, capture_output=True, text=True)
    assert finished.returncode == 1
    assert f"{tmp_path / 'broken' / 'ablation.log'} says why" in finished.stderr
    assert "batch_size" in (tmp_path / "broken" / "ablation.log").read_text()
    assert json.loads((tmp_path / "result.json").read_text())["headline"] == {"recipe": 0.5}


STOPPED_TWICE = """
import os, runpy, signal, sys
import policy.results
stop = lambda: os.kill(os.getpid(), signal.SIGTERM)
write = policy.results.write_result
policy.results.write_result = lambda *given: (stop(), write(*given))
sys.argv = sys.argv[1:]
main = runpy.run_path(sys.argv[0])["main"]
main.__globals__["run_all"] = lambda chosen: stop()
main()
"""


def test_being_stopped_again_while_reporting_costs_nothing(tmp_path: Path) -> None:
    made_run(tmp_path / "recipe", [True, False])
    options = ["--variants", '{"recipe": {}}', "--runs", str(tmp_path), "--output", str(tmp_path / "result.json")]
    script = [sys.executable, "-c", STOPPED_TWICE, "scripts/ablate_training.py"]
    finished = subprocess.run([*script, *options], cwd=REPOSITORY, capture_output=True, text=True)
    assert finished.returncode == 143, finished.stderr
    assert json.loads((tmp_path / "result.json").read_text())["headline"] == {"recipe": 0.5}
