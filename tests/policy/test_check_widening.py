"""One command tells how far a widened policy is the policy itself."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = str(Path(__file__).parents[2] / "scripts" / "check_widening.py")


def test_a_widened_policy_decides_alike(
    acting_checkpoint: Path, demonstrations: Path, tmp_path: Path, monkeypatch
) -> None:
    output = tmp_path / "agreement.json"
    command = [SCRIPT, str(demonstrations), "--checkpoint", str(acting_checkpoint), "--device", "cpu"]
    command += ["--vocabulary", "1024", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(SCRIPT, run_name="__main__")
    assert not ended.value.code
    content = json.loads(output.read_text())
    exact, rounded = content["rows"][:2]
    assert (exact["actions"], exact["token_agreement"], exact["dtype"]) == (6, 1.0, "float32")
    assert 0 <= rounded["decision_agreement"] <= 1
    assert content["headline"]["float32_token_agreement"] == 1.0


def test_a_folder_without_frames_is_an_error(tmp_path: Path, acting_checkpoint: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT, str(tmp_path), "--checkpoint", str(acting_checkpoint)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(SCRIPT, run_name="__main__")
    assert ended.value.code == 2
    assert "0 demonstrations" in capsys.readouterr().out
