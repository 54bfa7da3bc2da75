"""One command times drafters on what their training did not see, and its verdict counts plain decoding."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from policy.training.episode_choice import held_out_names

SCRIPT = str(Path(__file__).parents[2] / "scripts" / "measure_drafters.py")


def test_frames_that_training_holds_out_are_measured(
    acting_checkpoint: Path, demonstrations: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    played: list[str] = []
    monkeypatch.setattr("policy.decoding.race.Runner.forget", lambda self: played.append(f"{len(self.traces)} to warm"))
    output = tmp_path / "drafters.json"
    command = [SCRIPT, str(demonstrations), "--checkpoint", str(acting_checkpoint), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*command, "--dtype", "float32", "--decoding", "exact", "--output", str(output)])
    runpy.run_path(SCRIPT, run_name="__main__")
    content = json.loads(output.read_text())
    assert [row["decoding"] for row in content["rows"]] == ["autoregressive", "exact"]
    for row in content["rows"]:
        assert (row["episodes"], row["held_out_episodes"]) == (1, 1)
    assert len(held_out_names((path.name for path in demonstrations.iterdir()), 20)) == 1
    assert content["headline"]["fastest_exact"] in ("autoregressive", "exact")
    assert played == ["3 to warm"] * 2
    assert "may have learned from" not in capsys.readouterr().out


def test_a_camera_is_for_data_sets(acting_checkpoint: Path, demonstrations: Path, monkeypatch) -> None:
    command = [SCRIPT, str(demonstrations), "--checkpoint", str(acting_checkpoint), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*command, "--camera", "image"])
    with pytest.raises(SystemExit, match="cannot measure: camera 'image' and turned None are for LeRobot and RLDS"):
        runpy.run_path(SCRIPT, run_name="__main__")
