"""What speculation remembers of a picture: to tell whether it has changed, and to find one that looked alike.

Knows the target's projected patches. Knows nothing of pixels, sessions or actions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from policy.openvla.config import PATCHES

# The patches of a frame are averaged over a grid of this many cells a side, so that places stay apart.
GRID = 4
_PATCH_GRID = int(PATCHES**0.5)
# Two frames are the same picture where features differ by less than this share of their length. In 4,000 frames of a
# moving LIBERO arm the smallest difference was 0.0034, the median 0.024.
STILL_TOLERANCE = 0.003
SKETCHED = 64


def picture_features(embeddings: Tensor) -> Tensor:
    """Float32 `[B, 16 * width]` of prompts' embeddings `[B, S, width]`: the patches, averaged over a grid of 4 by 4."""
    patches = embeddings[:, 1 : 1 + PATCHES].float()  # [B, 256, width]
    maps = patches.transpose(1, 2).unflatten(2, (_PATCH_GRID, _PATCH_GRID))
    return functional.avg_pool2d(maps, _PATCH_GRID // GRID).flatten(1)


def is_still(before: Tensor, now: Tensor) -> Tensor:
    """Bool `[B]`, whether two pictures' features `[B, features]` are the same picture's."""
    return (now - before).norm(dim=1) <= STILL_TOLERANCE * before.norm(dim=1)


class Sketcher:
    """Projects features at random to a few numbers (Johnson and Lindenstrauss 1984: distances survive it)."""

    def __init__(self, features: int, device: torch.device | str) -> None:
        normal = np.random.default_rng(0).standard_normal((features, SKETCHED), np.float32)
        self._projection = torch.from_numpy(normal / np.float32(np.sqrt(SKETCHED))).to(device)

    def __call__(self, features: Tensor) -> Tensor:
        """Float32 `[B, 64]` of features float32 `[B, features]`, brought to length one first."""
        return features / features.norm(dim=1, keepdim=True).clamp(min=1e-6) @ self._projection
