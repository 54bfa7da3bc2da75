"""Demonstrations of a few frames in one colour, to train on in tests."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from policy.openvla.images import encode_frame
from policy.training import frames
from policy.training.demonstrations import PRIVILEGED_NAMES, Demonstration, DemonstrationMeta

INSTRUCTIONS = ["pick up the milk and place it in the basket", "open the drawer"]


def decode_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores of frames have no decoding processes from now on, which take seconds to start."""
    monkeypatch.setattr(frames, "ProcessPoolExecutor", lambda processes, **_: ThreadPoolExecutor(processes))


def record(directory: Path, seed: int, instruction: str, steps: int = 4, suite: str = "libero_object") -> Path:
    """Saves an episode of task 0 under the name that it has by suite and seed; returns its path."""
    rng = np.random.default_rng(seed)
    streams = [encode_frame(np.full((64, 64, 3), rng.integers(256), np.uint8)) for _ in range(steps)]
    actions = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
    actions[:, 6] = rng.integers(0, 2, steps)
    demonstration = Demonstration(
        meta=DemonstrationMeta(suite, 0, instruction, seed, success=True),
        jpeg=np.frombuffer(b"".join(streams), np.uint8),
        jpeg_offsets=np.cumsum([0, *map(len, streams)]),
        actions=actions,
        executed=actions,
        privileged=rng.normal(size=(steps, len(PRIVILEGED_NAMES))).astype(np.float32),
        states=np.zeros((steps, 3)),
        pictured=np.zeros((steps, 1)),
        body_positions=np.zeros((1, 3)),
        body_quaternions=np.zeros((1, 4)),
    )
    path = directory / demonstration.file_name
    demonstration.save(path)
    return path
