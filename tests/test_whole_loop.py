"""The policy in the box through the real server on a real LIBERO task: what `make demo` does, in one episode."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policy.training.config import NetworkSize

ROOT = Path(__file__).resolve().parents[1]
BOX = ROOT / "policy" / "pretrained" / "libero"


def test_the_box_is_small_and_says_how_it_was_made() -> None:
    files = {path.name: path.stat().st_size for path in BOX.iterdir()}
    assert sum(files.values()) <= 25e6
    assert {"model.safetensors", "config.json", "dataset_statistics.json", "tokenizer.json", "README.md"} <= set(files)
    runs = list(training_runs(json.loads((BOX / "training_config.json").read_text())))
    assert runs
    for trained in runs:
        assert NetworkSize(**trained["network"]) == NetworkSize()
        assert trained["steps"] > 0


def training_runs(told: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Of a policy, or of all that it is the average of."""
    if "average_of" not in told:
        yield told
        return
    assert set(told["average_of"]) == set(told["training"])
    for part in told["training"].values():
        yield from training_runs(part)


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
