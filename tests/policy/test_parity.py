"""Against recordings of the original code, and the comparison itself.

The set of `tests/data` leaves out what cannot be small: SPECACT_GOLDEN may name a complete one.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from policy.parity.golden import GoldenSet, Report

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_parity.py"


def check_parity(checkpoint: Path, golden: Path, *options: str) -> int:
    """The script's exit status; what it prints is left to capsys."""
    specification = importlib.util.spec_from_file_location("check_parity", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    return int(script.main(["--checkpoint", str(checkpoint), "--golden", str(golden), *options]))


@pytest.mark.golden
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_everything_recorded_is_reproduced(
    golden_directory: Path, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = check_parity(golden_directory / "checkpoint", golden_directory, "--dtype", dtype)
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "recorded, but not compared" not in printed


@pytest.mark.golden
def test_a_small_change_of_the_weights_is_found(
    golden_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = Path(
        shutil.copytree(golden_directory / "checkpoint", tmp_path / "changed", copy_function=shutil.copyfile)
    )
    tensors = load_file(changed / "model.safetensors")
    tensors["vision_backbone.fused_featurizer.blocks.1.norm2.bias"][0] += 0.25
    changed.chmod(0o755)
    save_file(tensors, changed / "model.safetensors")
    assert check_parity(changed, golden_directory) == 1
    printed = capsys.readouterr().out
    assert "vision siglip: first difference at siglip_0" in printed
    assert "vision dinov2: first" not in printed


def test_close_books_the_largest_deviation() -> None:
    report = Report()
    report.close("x", np.array([1.0, 2.0]), np.array([1.0, 2.5]), 1.0)
    report.close("x", np.array([0.0]), np.array([0.25]), 1.0)
    assert (report.checks["x"].deviation, report.checks["x"].rows, report.failed) == (0.5, 2, [])
    report.close("x", np.array([5.0, 9.0]), np.array([5.0, 5.0]), 1.0, "row 7")
    assert report.failed[0].detail == "row 7[1]: 9, recorded 5"


@pytest.mark.parametrize("found", [np.array([np.nan, 1.0]), np.array([1.0, 1.0, 1.0])])
def test_nan_and_wrong_shape_fail(found: np.ndarray) -> None:
    report = Report()
    report.close("x", found, np.array([1.0, 1.0]), 1e9)
    assert report.failed[0].deviation == np.inf


def test_equal_counts_differences() -> None:
    report = Report()
    report.equal("ids", [1, 2, 3], [1, 5, 6], "row 0")
    assert (report.failed[0].deviation, report.failed[0].detail) == (2.0, "row 0[1]: 2, recorded 5")
    report.equal("text", "abc", "abd")
    assert [check.name for check in report.failed] == ["ids", "text"]


def test_pixels_may_be_off_by_one_level_three_times() -> None:
    expected = np.full((4, 4, 3), 100, np.uint8)
    report, found = Report(), expected.copy()
    found.flat[:3] += 1
    report.almost_equal_pixels("three", found, expected)
    found.flat[3] -= 1
    report.almost_equal_pixels("four", found, expected)
    found = expected.copy()
    found.flat[0] += 2
    report.almost_equal_pixels("two levels", found, expected)
    assert [check.name for check in report.failed] == ["four", "two levels"]


def test_golden_set_lists_what_is_missing_and_what_is_unread(tmp_path: Path) -> None:
    (tmp_path / "golden.json").write_text("{}")
    (tmp_path / "arrays").mkdir()
    np.savez(tmp_path / "arrays" / "vision.npz", rows_0=np.arange(3), extra=np.arange(2))
    golden = GoldenSet(tmp_path)
    rows = golden.array("arrays/vision.npz", "rows_0")
    assert rows is not None
    assert rows.tolist() == [0, 1, 2]
    assert golden.array("arrays/predict.npz", "images") is None
    assert golden.missing == {"arrays/predict.npz: images"}
    assert golden.unread() == ["arrays/vision.npz: extra"]
    with pytest.raises(FileNotFoundError, match=r"golden\.json is missing"):
        GoldenSet(tmp_path / "arrays")


def test_a_set_with_nothing_recorded_is_no_success(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "golden.json").write_text("{}")
    assert check_parity(small_checkpoint, tmp_path) == 2
    assert "holds nothing that could be compared" in capsys.readouterr().out


def test_what_cannot_be_compared_is_said_in_one_line(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_parity(small_checkpoint, tmp_path) == 2
    assert "golden.json is missing" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "golden.json").write_text("{}")
    assert check_parity(tmp_path, tmp_path) == 2
    assert "expected model.safetensors" in " ".join(capsys.readouterr().out.split())
