"""Frames of a stretch of a video file. Knows PyAV and nothing of data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policy.training.datasets.extra import import_extra
from policy.training.datasets.git_lfs import pointer_hint


def read_frames(path: Path, times: Sequence[float], tolerance: float) -> Iterator[np.ndarray]:
    """Uint8 `[H, W, 3]` RGB for each of the rising times, seconds from the file's beginning, in order.

    tolerance: seconds that a frame may be off, less than half of the time between two frames.
    Raises ValueError for a file that is no video or lacks a frame, FileNotFoundError where there is none.
    """
    av: Any = import_extra("av", "video")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; fetch the data set with its videos")
    wanted = iter(times)
    time = next(wanted, None)
    if time is None:
        return
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            # To the last key frame before the first time; the frames between are decoded and passed over.
            container.seek(int(max(0.0, time - tolerance) / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.time < time - tolerance:
                    continue
                if frame.time > time + tolerance:
                    raise ValueError(f"{path} has no frame at {time:.3f} s, the next is at {frame.time:.3f} s")
                yield frame.to_ndarray(format="rgb24")
                time = next(wanted, None)
                if time is None:
                    return
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is no readable video: {error}{pointer_hint(path)}") from error
    raise ValueError(f"{path} ends before {time:.3f} s; it is cut short or of another data set")
