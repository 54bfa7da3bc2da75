"""What speculation remembers of a picture: to tell whether it has changed, and to find one that looked alike.

Knows the target's projected patches and its pixels. Knows nothing of sessions or actions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from policy.decoding.capture import Record, captured
from policy.decoding.transfer import mark, shared_memory
from policy.openvla.config import IMAGE_SIDE, PATCHES

# The patches of a frame are averaged over a grid of this many cells a side, so that places stay apart.
GRID = 4
_PATCH_GRID = int(PATCHES**0.5)
# Two frames are the same picture where features differ by less than this share of their length. In 4,000 frames of a
# moving LIBERO arm the smallest difference was 0.0034, the median 0.024.
STILL_TOLERANCE = 0.003
# A sketch is so many numbers, made of a thumbnail with one place for so many pixels in each direction.
SKETCHED = 64
_CELL = 7


def picture_features(embeddings: Tensor) -> Tensor:
    """Float32 `[B, 16 * width]` of prompts' embeddings `[B, S, width]`: the patches, averaged over a grid of 4 by 4."""
    patches = embeddings[:, 1 : 1 + PATCHES].float()  # [B, 256, width]
    maps = patches.transpose(1, 2).unflatten(2, (_PATCH_GRID, _PATCH_GRID))
    return functional.avg_pool2d(maps, _PATCH_GRID // GRID).flatten(1)


def is_still(before: Tensor, now: Tensor) -> Tensor:
    """Bool `[B]`, whether two pictures' features `[B, features]` are the same picture's."""
    return (now - before).norm(dim=1) <= STILL_TOLERANCE * before.norm(dim=1)


class Sketcher:
    """Sums frames up in a few numbers each, by which those that look alike are found.

    That needs pixels only, so drafting goes on while the target looks at the frame; on logged episodes thumbnails found
    actions as near as the target's own features did. record: replays it where given.
    """

    def __init__(self, device: torch.device, record: Record | None = None) -> None:
        normal = np.random.default_rng(0).standard_normal((3 * (IMAGE_SIDE // _CELL) ** 2, SKETCHED), np.float32)
        self._projection = torch.from_numpy(normal / np.float32(np.sqrt(SKETCHED))).to(device)
        self._device = device
        self._run = captured(self._sketch, record)
        self._found: dict[int, Tensor] = {}  # on the host, by the number of frames

    def look(self, pixels: Tensor) -> Callable[[], np.ndarray]:
        """Begin with pixel values `[B, 6, 224, 224]`. What comes back, called, waits for float32 `[B, 64]`."""
        batch = len(pixels)
        if batch not in self._found:
            self._found[batch] = shared_memory((batch, SKETCHED), torch.float32, self._device)
        found = self._found[batch]
        self._run((pixels,), found)
        wait = mark(self._device, patient=batch > 1)

        def read() -> np.ndarray:
            wait()
            return found.numpy().copy()

        return read

    def _sketch(self, pixels: Tensor, found: Tensor) -> None:
        """A thumbnail of one tower's channels, brought to length one and projected at random (Johnson and Lindenstrauss
        1984: distances survive it).
        """
        thumbnails = functional.avg_pool2d(pixels[:, :3].float(), _CELL).flatten(1)
        unit = thumbnails / thumbnails.norm(dim=1, keepdim=True).clamp(min=1e-6)
        found.copy_(unit @ self._projection, non_blocking=True)
