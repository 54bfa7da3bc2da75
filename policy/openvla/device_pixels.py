"""The "libero" image path on the model's device: the arithmetic of `resampling` and `images` in torch.

On the host it takes milliseconds, beside a GPU that waits. Every step is one elementwise float32
operation, each a kernel of its own, in the same order as in numpy; so there is no fused multiply-add that would round
differently, and the pixels are the same to the last bit. JPEG's own arithmetic is known to `device_jpeg`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from policy.openvla.config import IMAGE_SIDE
from policy.openvla.device_jpeg import DeviceJPEG, is_whole
from policy.openvla.images import LIBERO_CROP_SIDE, PreprocessorSettings, compressed_frame, normalisation_tables
from policy.openvla.resampling import blend_places, lanczos_taps


class DevicePixels:
    """From what `uploaded` leaves of camera frames to the network's input, for settings and a device."""

    def __init__(self, settings: PreprocessorSettings, device: torch.device) -> None:
        self._device = device
        self._jpeg = DeviceJPEG(device)
        self._tables = torch.from_numpy(normalisation_tables(settings)).to(device)  # [3 * towers, 256]
        self._channels = torch.arange(len(self._tables), device=device)[:, None, None]
        self._taps: dict[int, tuple[Tensor, Tensor]] = {}
        self._above, self._below, self._blend = (
            torch.tensor(places).to(device) for places in blend_places(IMAGE_SIDE, LIBERO_CROP_SIDE)
        )

    def __call__(self, frames: Tensor) -> Tensor:
        """Frames uint8 `[B, H, W, 3]` on the device to float32 `[B, 3 * towers, 224, 224]`."""
        height, width = frames.shape[1:3]
        if is_whole(height, width):
            frames = self._jpeg(frames.flip(1, 2))
        rows = _weighted(frames.float(), 1, *self._lanczos(height))
        sized = _weighted(rows, 2, *self._lanczos(width)).round().clamp(0, 255)  # [B, 224, 224, 3]
        columns = self._blended(sized * float(np.float32(1 / 255)), 2)
        cropped = (self._blended(columns, 1) * 255.5).to(torch.uint8)
        levels = cropped.permute(0, 3, 1, 2).long()  # [B, 3, 224, 224]
        return self._tables[self._channels, levels.repeat(1, len(self._tables) // 3, 1, 1)]

    def compiled(self, shape: tuple[int, int] = (256, 256)) -> Callable[[Tensor], Tensor]:
        """The same with code compiled for one frame of this height and width, which takes some 15 s at the first call;
        other numbers and sizes of frames are not worth a stall, and go the usual way. Each operation rounds as it does
        alone.
        """
        for source in shape:
            self._lanczos(source)
        alone = torch.compile(self.__call__, dynamic=False, options={"emulate_precision_casts": True})

        def pixels(frames: Tensor) -> Tensor:
            return alone(frames) if frames.shape[:3] == (1, *shape) else self(frames)

        return pixels

    def _lanczos(self, source: int) -> tuple[Tensor, Tensor]:
        """Source rows int64 `[taps, 224]` and weights float32 `[taps, 224]`."""
        if source not in self._taps:
            rows, weights = (torch.tensor(table.T).to(self._device) for table in lanczos_taps(source, IMAGE_SIDE))
            self._taps[source] = rows.contiguous(), weights.contiguous()
        return self._taps[source]

    def _blended(self, x: Tensor, axis: int) -> Tensor:
        """Sample `[B, 224, 224, 3]` along an axis at the crop's places, between two neighbours each."""
        upper, lower = x.index_select(axis, self._above), x.index_select(axis, self._below)
        difference = lower - upper
        return upper + difference * _along(self._blend, axis)


def uploaded(image: np.ndarray) -> np.ndarray:
    """What the device is given of a camera frame uint8 `[H, W, 3]`: the frame itself, or with sides that `device_jpeg`
    does not take, what JPEG leaves of it.
    """
    return image if is_whole(*image.shape[:2]) else compressed_frame(image)


def _weighted(x: Tensor, axis: int, sources: Tensor, weights: Tensor) -> Tensor:
    """Resample `[B, H, W, 3]` along an axis; taps are added up one by one."""
    total: Tensor | None = None
    for rows, weight in zip(sources, weights, strict=True):
        term = x.index_select(axis, rows) * _along(weight, axis)
        total = term if total is None else total + term
    assert total is not None, "a window has at least one tap"
    return total


def _along(values: Tensor, axis: int) -> Tensor:
    """Numbers `[224]` (or `[224, 1]`) shaped to be multiplied along an axis of `[B, H, W, 3]`."""
    return values.reshape((1, -1, 1, 1) if axis == 1 else (1, 1, -1, 1))
