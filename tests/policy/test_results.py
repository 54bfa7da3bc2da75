"""A written result can be read back and names what produced it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from policy.results import REPOSITORY, write_result


def test_result_holds_what_is_needed_to_repeat_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(REPOSITORY / "scripts" / "measure.py"), "--name", "two words"])
    path = tmp_path / "new" / "result.json"

    write_result(path, [{"stage": "decode", "median_ms": np.float32(1.5), "frames": np.int64(200)}], {"decode_ms": 1.5})

    result = json.loads(path.read_text())
    assert result["rows"] == [{"stage": "decode", "median_ms": 1.5, "frames": 200}]
    assert result["headline"] == {"decode_ms": 1.5}
    assert result["command"] == "python scripts/measure.py --name 'two words'"
    assert datetime.fromisoformat(result["date"]).tzinfo is not None
    assert result["hardware"]["cpu"]
    assert result["hardware"]["cores"] >= 1
    assert result["versions"]["numpy"] == np.__version__
    assert list(path.parent.iterdir()) == [path]


def test_commit_is_the_checked_out_one(tmp_path: Path) -> None:
    head = subprocess.run(["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"], capture_output=True, text=True)
    expected = head.stdout.strip()

    write_result(tmp_path / "result.json", [], {})

    assert json.loads((tmp_path / "result.json").read_text())["commit"].removesuffix("-dirty") == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), object()])
def test_values_that_json_cannot_hold_are_refused(tmp_path: Path, value: object) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(ValueError, match="finite numbers"):
        write_result(path, [{"median_ms": value}], {})
    assert not path.exists()


def test_importing_needs_no_torch() -> None:
    code = "import sys, policy.results; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0
