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
            for frame in _decoded_from(container, stream, time, tolerance):
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


def _decoded_from(container: Any, stream: Any, time: float, tolerance: float) -> Iterator[Any]:
    """Frames from the one at `time` on, or from an earlier one; whoever reads passes that over."""
    back = 0.0
    while True:
        start = max(0.0, time - tolerance - back)
        container.seek(int(start / stream.time_base), stream=stream)
        frames = container.decode(stream)
        first = next(frames, None)
        if first is None or first.time <= time + tolerance or start == 0.0:
            break
        # Files list key frames by when they are decoded. In an open group of pictures one is decoded before frames that
        # are shown before it, and those need the group before.
        back = 2 * back or 1.0
    if first is not None:
        yield first
        yield from frames
