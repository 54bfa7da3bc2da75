"""Some frames in one picture, to see with one's own eyes that they stand upright and show the right camera."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

FRAMES_IN_A_ROW = 6


def save_contact_sheet(frames: np.ndarray, path: Path, rows: int = 2) -> None:
    """Write a PNG of frames uint8 `[N, S, S, 3]`, evenly taken from first to last, row by row."""
    taken = frames[np.linspace(0, len(frames) - 1, rows * FRAMES_IN_A_ROW).round().astype(int)]
    lines = [np.hstack(list(line)) for line in np.split(taken, rows)]
    Image.fromarray(np.vstack(lines)).save(path)
