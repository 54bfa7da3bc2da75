"""What the small data sets hold: three episodes of one to three LIBERO tasks, turned as LIBERO's data sets store them.

Needs numpy and Pillow only, so that it runs beside lerobot and beside TensorFlow.
"""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (80, 64)  # width and height differ, so that a mix-up shows
STEPS = (3, 2, 4)


def episodes(demonstrations: list[str]) -> list[list[tuple[str, np.ndarray]]]:
    """Instruction and picture uint8 `[64, 80, 3]` of each step; the last episode changes its task half-way.

    demonstrations: two files of the demonstration format, of different tasks.
    """
    (first, first_text), (second, second_text) = (_read(Path(path)) for path in demonstrations)
    parts = (
        [(first_text, first[at]) for at in range(0, 3 * 8, 8)],
        [(second_text, second[at]) for at in range(0, 2 * 8, 8)],
        [(first_text, first[40]), (first_text, first[48]), (second_text, second[40]), (second_text, second[48])],
    )
    assert tuple(map(len, parts)) == STEPS
    return [[(text, _sized(jpeg)) for text, jpeg in part] for part in parts]


def _read(path: Path) -> tuple[list[bytes], str]:
    with np.load(path, allow_pickle=False) as file:
        ends = file["jpeg_offsets"]
        stream = file["jpeg"].tobytes()
        text = json.loads(str(file["meta"]))["instruction"]
    return [stream[first:last] for first, last in pairwise(ends)], text


def _sized(jpeg: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(jpeg)) as picture:
        # Blurred and of few levels, so that PNG gets small.
        blurred = picture.resize((SIZE[0] // 8, SIZE[1] // 8), Image.Resampling.BOX)
        return np.asarray(blurred.resize(SIZE, Image.Resampling.BICUBIC)) & 0xF0
