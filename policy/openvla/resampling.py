"""TensorFlow's antialiased Lanczos resize and its bilinear crop on uint8 frames, in numpy, to the last bit.

Every operation is an elementwise float32 one in the order of TensorFlow's kernels (`scale_and_translate_op.cc`,
`crop_and_resize_op.cc`), so the result depends on no matrix library, thread count or instruction set. Each function
transposes the frame between its two passes, so that both combine whole contiguous rows; that is what makes it fast.

Knows nothing of which frames are resized or why.
"""

from __future__ import annotations

import ctypes
import math
import threading
from functools import lru_cache

import numpy as np

LANCZOS_RADIUS = np.float32(3)
PI = np.float32(3.14159265359)
HALF = np.float32(0.5)


class _Buffers(threading.local):
    """Float32 scratch that lives from frame to frame: fresh megabytes for each cost more than the arithmetic on them.

    A set for each thread. No buffer leaves this module; every public function returns a new array.
    """

    def __init__(self) -> None:
        self._flat: dict[str, np.ndarray] = {}

    def get(self, use: str, shape: tuple[int, ...]) -> np.ndarray:
        """The buffer for `use`, shaped; it holds what was left there and is overwritten by the next such call."""
        size = math.prod(shape)
        if use not in self._flat or self._flat[use].size < size:
            self._flat[use] = np.empty(size, np.float32)
        return self._flat[use][:size].reshape(shape)


_BUFFERS = _Buffers()


def lanczos_resize(image: np.ndarray, side: int) -> np.ndarray:
    """Resize uint8 `[H, W, 3]` to `[side, side, 3]` with Lanczos-3, widened when shrinking; rounds half to even."""
    height, width, channels = image.shape
    rows = _weighted_rows(_source(image.reshape(height, -1)), side)  # [side, W * 3]
    turned = _source(rows.T).reshape(width, -1)  # [W, 3 * side]
    columns = _weighted_rows(turned, side)  # [side, 3 * side]
    np.rint(columns, out=columns)
    np.clip(columns, 0, 255, out=columns)
    upright = columns.astype(np.uint8).reshape(-1, side).T  # [side, side * 3]
    return np.ascontiguousarray(upright).reshape(side, side, channels)


def bilinear_crop(image: np.ndarray, fraction: float) -> np.ndarray:
    """Cut the centre out of uint8 `[S, S, 3]` and scale it back to `[S, S, 3]` bilinearly, corner to corner.

    fraction: side of the cut square over S, in (0, 1].

    The pixels pass through [0, 1]: bytes are multiplied with 1/255 and come back as floor(255.5 * value), as
    `tf.image.convert_image_dtype` does it (saturating, without rounding). Raises ValueError for a frame not square.
    """
    side, width, channels = image.shape
    if width != side:
        raise ValueError(f"the centre crop needs a square frame, got {side}x{width}; resize it first")
    turned = _source(image.reshape(side, -1).T).reshape(side, -1)  # [S, 3 * S], columns first
    turned *= np.float32(1 / 255)
    columns = _blended_rows(turned, fraction)  # [S, 3 * S]
    upright = _source(columns.reshape(-1, side).T)  # [S, S * 3]
    rows = _blended_rows(upright, fraction)
    rows *= np.float32(255.5)
    return rows.astype(np.uint8).reshape(side, side, channels)


def _source(values: np.ndarray) -> np.ndarray:
    """`values` as contiguous float32, in the buffer that a pass reads from."""
    buffer = _BUFFERS.get("source", values.shape)
    np.copyto(buffer, values)
    return buffer


def _weighted_rows(rows: np.ndarray, count: int) -> np.ndarray:
    """Resample float32 `[N, K]` to `[count, K]` (a buffer), adding up the taps one by one as TensorFlow does."""
    sources, weights = lanczos_taps(len(rows), count)
    total = _BUFFERS.get("result", (count, rows.shape[1]))
    term = _BUFFERS.get("term", total.shape)
    total.fill(0)
    for tap in range(sources.shape[1]):
        np.take(rows, sources[:, tap], axis=0, out=term, mode="clip")
        term *= weights[:, tap, None]
        total += term
    return total


@lru_cache(maxsize=32)
def lanczos_taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Source rows int64 `[target, taps]` and their weights float32 `[target, taps]` (0 where a window has fewer taps).

    Half-pixel centres; the window has radius 3 on the coarser of the two grids and is cut and renormalised at borders.
    """
    spacing = np.float32(1) / (np.float32(target) / np.float32(source))
    stretch = max(spacing, np.float32(1))
    centers = (np.arange(target, dtype=np.float32) + HALF) * spacing
    first = np.clip(np.ceil(centers - LANCZOS_RADIUS * stretch - HALF), 0, source - 1).astype(np.int64)
    last = np.clip(np.floor(centers + LANCZOS_RADIUS * stretch - HALF), 0, source - 1).astype(np.int64)
    sources = first[:, None] + np.arange((last - first).max() + 1)  # [target, taps]

    distances = np.abs((sources.astype(np.float32) + HALF - centers[:, None]) * (np.float32(1) / stretch))
    weights = np.where(sources <= last[:, None], _lanczos(distances), np.float32(0))
    total = np.zeros(target, np.float32)
    for tap in weights.T:  # one by one: numpy's own sum pairs the terms differently
        total += tap
    weights *= (np.float32(1) / total)[:, None]
    sources = np.minimum(sources, source - 1)
    sources.flags.writeable = weights.flags.writeable = False
    return sources, weights


def _lanczos(distance: np.ndarray) -> np.ndarray:
    """Lanczos-3 of non-negative float32 distances in samples: 3 sin(pi x) sin(pi x / 3) / (pi x)^2, 0 beyond 3."""
    x = np.maximum(distance, np.float32(1e-3))
    kernel = LANCZOS_RADIUS * _sinf(PI * x) * _sinf(PI * x / LANCZOS_RADIUS) / (PI * PI * x * x)
    kernel[distance <= np.float32(1e-3)] = 1
    kernel[distance > LANCZOS_RADIUS] = 0
    return kernel


def _sinf(angles: np.ndarray) -> np.ndarray:
    """The C library's float32 sine, which TensorFlow calls; numpy's differs from it in the last bit of some values."""
    sinf = ctypes.CDLL(None).sinf
    sinf.argtypes, sinf.restype = [ctypes.c_float], ctypes.c_float
    return np.array([sinf(angle) for angle in angles.flat], np.float32).reshape(angles.shape)


def _blended_rows(rows: np.ndarray, fraction: float) -> np.ndarray:
    """Sample float32 `[S, K]` at S places spread over its central `fraction`: `[S, K]`, a buffer."""
    above, below, blend = blend_places(len(rows), fraction)
    upper, lower = _BUFFERS.get("result", rows.shape), _BUFFERS.get("term", rows.shape)
    np.take(rows, above, axis=0, out=upper, mode="clip")
    np.take(rows, below, axis=0, out=lower, mode="clip")
    lower -= upper
    lower *= blend
    upper += lower
    return upper


@lru_cache(maxsize=8)
def blend_places(side: int, fraction: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `side` samples the row above, the row below (int64 `[side]`) and the latter's share `[side, 1]`."""
    span, steps = np.float32(fraction), np.float32(side - 1)
    start = (np.float32(1) - span) / np.float32(2)
    spacing = ((start + span) - start) * steps / steps
    places = start * steps + np.arange(side, dtype=np.float32) * spacing
    above = np.floor(places)
    share = (places - above)[:, None]
    share.flags.writeable = False
    return above.astype(np.int64), np.ceil(places).astype(np.int64), share
