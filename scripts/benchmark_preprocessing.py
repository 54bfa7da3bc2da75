"""Time from a camera frame to the network's pixels, by stage: `python scripts/benchmark_preprocessing.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli
from PIL import Image
from rich.console import Console
from rich.table import Table

from policy.openvla.images import center_crop, decode_frame, encode_frame, pixel_values, processor_pixel_values
from policy.results import write_result

_SIMULATOR_FRAME, _CAMERA_FRAME = (256, 256), (480, 640)
_DISTINCT_FRAMES = 20


def main(frames: int = 300, output: Path | None = None) -> None:
    """Measures on one thread; no stage starts more.

    Args:
        frames: frames timed for each stage, at least 200 for a meaningful 95th percentile.
        output: file for the result as JSON, e.g. docs/results/preprocessing.json.
    """
    if frames < 1:
        raise SystemExit(f"--frames must be at least 1, got {frames}")
    rows = [
        *_stages(_SIMULATOR_FRAME, frames),
        _row("whole 'libero' path", _CAMERA_FRAME, lambda image: pixel_values(image, "libero"), frames),
        _row("whole 'processor' path", _CAMERA_FRAME, lambda image: pixel_values(image, "processor"), frames),
    ]
    table = Table("stage", "frame", "median ms", "p95 ms")
    for row in rows:
        table.add_row(row["stage"], row["frame"], f"{row['median_ms']:.2f}", f"{row['p95_ms']:.2f}")
    Console().print(table)
    if output is not None:
        whole = next(row for row in rows if row["stage"] == "whole 'libero' path")
        write_result(output, rows, {"libero_path_median_ms": whole["median_ms"], "libero_path_p95_ms": whole["p95_ms"]})


def _stages(size: tuple[int, int], frames: int) -> list[dict[str, Any]]:
    """The LIBERO path and its parts, then the processor's path, each fed with what the part before it gives."""
    return [
        _row("rotate, JPEG encode", size, encode_frame, frames),
        _row("JPEG decode, Lanczos", size, decode_frame, frames, prepare=encode_frame),
        _row("centre crop", size, center_crop, frames, prepare=lambda image: decode_frame(encode_frame(image))),
        _row("normalise", size, processor_pixel_values, frames, prepare=lambda image: image[:224, :224].copy()),
        _row("whole 'libero' path", size, lambda image: pixel_values(image, "libero"), frames),
        _row("whole 'processor' path", size, lambda image: pixel_values(image, "processor"), frames),
    ]


def _row(
    stage: str,
    size: tuple[int, int],
    compute: Callable[[Any], Any],
    frames: int,
    prepare: Callable[[np.ndarray], Any] = lambda image: image,
) -> dict[str, Any]:
    inputs = [prepare(_scene(size, seed)) for seed in range(_DISTINCT_FRAMES)]
    for item in inputs:  # fills the caches of weights and tables
        compute(item)
    milliseconds = []
    for index in range(frames):
        start = time.perf_counter()
        compute(inputs[index % _DISTINCT_FRAMES])
        milliseconds.append((time.perf_counter() - start) * 1e3)
    median, p95 = np.percentile(milliseconds, (50, 95)).round(3)
    frame = f"{size[1]}x{size[0]}"
    return {"stage": stage, "frame": frame, "frames": frames, "median_ms": median, "p95_ms": p95}


def _scene(size: tuple[int, int], seed: int) -> np.ndarray:
    """Uint8 `[H, W, 3]`: soft patches of colour with fine noise, as hard to compress as a rendered LIBERO frame."""
    random = np.random.default_rng(seed)
    patches = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8))
    smooth = np.asarray(patches.resize(size[::-1], Image.Resampling.BICUBIC), np.int16)
    return np.clip(smooth + random.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
