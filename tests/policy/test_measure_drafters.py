"""One command times drafters on what their training did not see, and its verdict counts plain decoding."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from policy.drafting.head_checkpoint import save_head
from policy.drafting.head_network import HeadConfig, HeadNetwork
from policy.openvla.model import OpenVLA
from policy.training.episode_choice import held_out_names
from policy.training.widen import TargetSizes

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


def test_a_head_trained_for_the_wide_target_is_measured_with_it(
    acting_checkpoint: Path, acting_model: OpenVLA, demonstrations: Path, tmp_path: Path, monkeypatch
) -> None:
    """Beside a small target's own head, which is left alone."""
    sizes = TargetSizes(text_width=288)
    monkeypatch.setattr("policy.training.widen.OPENVLA_7B_SIZES", sizes)
    target, output, decoding = tmp_path / "target", tmp_path / "drafters.json", tmp_path / "eagle.yaml"
    target.mkdir()
    for file in acting_checkpoint.iterdir():
        (target / file.name).symlink_to(file)
    for folder, language in (
        ("eagle", acting_model.config.language),
        ("eagle-7b", sizes.of(acting_model.config).language),
    ):
        save_head(HeadNetwork(HeadConfig("eagle", replace(language, layers=1))), target / "drafters" / folder)
    decoding.write_text("drafters: []\nhead: eagle\ntail: head\n")
    command = [SCRIPT, str(demonstrations), "--checkpoint", str(target), "--device", "cpu", "--dtype", "float32"]
    command += ["--shape", "7b", "--steps", "1", "--decoding", str(decoding), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(SCRIPT, run_name="__main__")
    row = json.loads(output.read_text())["rows"][1]
    assert (row["head"], row["shape"], row["equal_actions"]) == ("eagle", "7b", 1.0)


def test_a_camera_is_for_data_sets(acting_checkpoint: Path, demonstrations: Path, monkeypatch) -> None:
    command = [SCRIPT, str(demonstrations), "--checkpoint", str(acting_checkpoint), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*command, "--camera", "image"])
    with pytest.raises(SystemExit, match="cannot measure: camera 'image' and turned None are for LeRobot and RLDS"):
        runpy.run_path(SCRIPT, run_name="__main__")
