"""The policy in the box through the real server on a real LIBERO task: what `make demo` does, in one episode."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from policy.training.config import NetworkSize

ROOT = Path(__file__).resolve().parents[1]
BOX = ROOT / "policy" / "pretrained" / "libero"


def test_the_box_is_small_and_says_how_it_was_made() -> None:
    files = {path.name: path.stat().st_size for path in BOX.iterdir()}
    assert sum(files.values()) <= 25e6
    assert {"model.safetensors", "config.json", "dataset_statistics.json", "tokenizer.json", "README.md"} <= set(files)
    trained = json.loads((BOX / "training_config.json").read_text())
    assert NetworkSize(**trained["network"]) == NetworkSize()
    assert trained["steps"] > 0


@pytest.mark.libero
def test_camera_frames_to_a_solved_task_through_two_processes(tmp_path: Path) -> None:
    demo = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--suites", "libero_object", "--tasks", "0"]
    finished = subprocess.run(
        [*demo, "--initial-states", "0", "--output", str(tmp_path)], capture_output=True, text=True, timeout=500
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (record,) = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert record["outcome"] == "success", record
    assert record["policy_id"].endswith("policy/pretrained/libero")
    assert record["decoder"] == "exact"
    assert 1 <= record["target_passes"] < 7
    assert not record["privileged"]
    (video,) = (tmp_path / "videos").glob("*.mp4")
    assert str(video) in finished.stdout
    assert str(tmp_path / "episodes.jsonl") in finished.stdout
