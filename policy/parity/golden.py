"""Recorded outputs of the original OpenVLA code, and a report of how this code's outputs compare.

A golden set is a directory with `golden.json`, `images/image_*.png` and `arrays/*.npz`, optionally with `variant-*`
folders: another `config.json` and its own `predict.npz` for the same weights. Sets may lack arrays; what was asked for
and not there, and what is there and was never asked for, are both listed. Knows nothing of how outputs are computed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True, slots=True)
class Tolerances:
    """Largest allowed absolute deviations.

    features: towers, projector, embeddings. states: layer outputs and final hidden state of the language model. loss:
    mean cross-entropy. Tokens, ids and pixels have to be equal in any dtype, actions within 1e-9.
    """

    features: float
    states: float
    logits: float
    loss: float
    actions: float = 1e-9


# The original differs from its own float64 by 3.5e-5 in float32, and by 0.15 (features) and 0.6 (logits) in bfloat16.
TOLERANCES = {
    "float32": Tolerances(features=2e-4, states=2e-4, logits=2e-4, loss=1e-4),
    # The residual stream reaches 20, where bfloat16 steps by 0.125.
    "bfloat16": Tolerances(features=0.3, states=0.6, logits=1.0, loss=0.3),
}


@dataclass(slots=True)
class Check:
    """One compared quantity, over all rows it was recorded for. detail: where the first failure lies."""

    name: str
    tolerance: float
    deviation: float = 0.0
    rows: int = 0
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.deviation <= self.tolerance


@dataclass(slots=True)
class Report:
    """All checks by name; comparing under a name again widens that check."""

    checks: dict[str, Check] = field(default_factory=dict)

    def close(self, name: str, found: np.ndarray, expected: np.ndarray, tolerance: float, place: str = "") -> None:
        """Book the largest absolute difference; infinite for another shape or where a value is not finite."""
        found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
        if found.shape != expected.shape:
            self._book(name, tolerance, np.inf, f"{place}: shape {found.shape}, recorded {expected.shape}")
            return
        difference = np.nan_to_num(np.abs(found - expected), nan=np.inf, posinf=np.inf)
        worst = int(np.argmax(difference))
        detail = f"{place}[{worst}]: {found.flat[worst]:.9g}, recorded {expected.flat[worst]:.9g}"
        self._book(name, tolerance, float(np.max(difference)), detail, len(found) if found.ndim > 1 else 1)

    def equal(self, name: str, found: Any, expected: Any, place: str = "") -> None:
        """Book how many integers (or texts) differ; none may."""
        found, expected = np.asarray(found), np.asarray(expected)
        if found.shape != expected.shape:
            self._book(name, 0, np.inf, f"{place}: {found.tolist()}, recorded {expected.tolist()}")
            return
        wrong = np.flatnonzero(found.ravel() != expected.ravel())
        detail = ""
        if len(wrong):
            detail = f"{place}[{wrong[0]}]: {found.ravel()[wrong[0]]}, recorded {expected.ravel()[wrong[0]]}"
        self._book(name, 0, float(len(wrong)), detail)

    def almost_equal_pixels(self, name: str, found: np.ndarray, expected: np.ndarray, place: str = "") -> None:
        """Book how many bytes of an image differ: 3 may, by one level (so much do float32 sines differ)."""
        if found.shape != expected.shape:
            self._book(name, 3, np.inf, f"{place}: shape {found.shape}, recorded {expected.shape}")
            return
        difference = np.abs(found.astype(int) - expected.astype(int))
        differing, largest = int((difference > 0).sum()), int(difference.max())
        deviation = float(differing) if largest <= 1 else np.inf
        self._book(name, 3, deviation, f"{place}: {differing} values differ, by up to {largest} levels")

    def _book(self, name: str, tolerance: float, deviation: float, detail: str, rows: int = 1) -> None:
        check = self.checks.setdefault(name, Check(name, tolerance))
        check.rows += rows
        if deviation > tolerance and check.passed:
            check.detail = detail
        check.deviation = max(check.deviation, deviation)

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks.values() if not check.passed]


class GoldenSet:
    """Reads a golden set and remembers what was asked of it. Raises FileNotFoundError without a `golden.json`."""

    def __init__(self, directory: Path) -> None:
        path = directory / "golden.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; a golden set has golden.json, arrays/ and images/")
        self.directory = directory
        self.description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.missing: set[str] = set()
        self._files: dict[str, dict[str, np.ndarray]] = {}
        self._read: set[tuple[str, str]] = set()

    @property
    def instructions(self) -> list[str]:
        return self.description.get("instructions", [])

    @property
    def variants(self) -> list[Path]:
        return sorted(path for path in self.directory.glob("variant-*") if (path / "predict.npz").is_file())

    def images(self) -> dict[int, np.ndarray]:
        """Uint8 `[H, W, 3]` by number."""
        paths = {int(path.stem.removeprefix("image_")): path for path in self.directory.glob("images/image_*.png")}
        return {number: np.array(Image.open(path).convert("RGB")) for number, path in sorted(paths.items())}

    def array(self, file: str, name: str) -> np.ndarray | None:
        """An array of `file` (path within the set); None, and remembered as missing, where the set lacks it."""
        arrays = self._arrays(file)
        if name not in arrays:
            self.missing.add(f"{file}: {name}")
            return None
        self._read.add((file, name))
        return arrays[name]

    def names(self, file: str, prefix: str) -> list[str]:
        """Names in `file` that start with `prefix`."""
        return [name for name in self._arrays(file) if name.startswith(prefix)]

    def unread(self) -> list[str]:
        """Arrays that the set holds and that nobody asked for."""
        files = sorted(path.relative_to(self.directory).as_posix() for path in self.directory.glob("**/*.npz"))
        return [f"{file}: {name}" for file in files for name in self._arrays(file) if (file, name) not in self._read]

    def _arrays(self, file: str) -> dict[str, np.ndarray]:
        if file not in self._files:
            path = self.directory / file
            self._files[file] = dict(np.load(path)) if path.is_file() else {}
        return self._files[file]


@dataclass(frozen=True, slots=True)
class Recording:
    """One file of a golden set, to compare with under a label."""

    report: Report
    golden: GoldenSet
    file: str
    label: str

    def array(self, name: str) -> np.ndarray | None:
        return self.golden.array(self.file, name)

    def close(self, quantity: str, name: str, found: np.ndarray, tolerance: float, row: int | None = None) -> None:
        """Compare with the array `name`, or with one row of it, if the set has it."""
        if (expected := self.array(name)) is not None:
            expected, place = (expected, name) if row is None else (expected[row], f"{name}[{row}]")
            self.report.close(f"{self.label} {quantity}", found, expected, tolerance, place)

    def equal(self, quantity: str, name: str, found: Any, row: int | None = None) -> None:
        """The same for integers, which have to be equal."""
        if (expected := self.array(name)) is not None:
            expected, place = (expected, name) if row is None else (expected[row], f"{name}[{row}]")
            self.report.equal(f"{self.label} {quantity}", found, expected, place)
