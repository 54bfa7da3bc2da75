"""How far drafts go on frames that were not trained on: the share accepted, position by position.

Knows claims and the target's bins. What a tree gains beyond a drafter's best bin is measured by decoding, not here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Exactly, and with Spec-VLA's tolerance in bins.
RADII = (0, 9)


@dataclass(frozen=True, slots=True)
class AcceptanceScore:
    """start: first drafted dimension. Shares for dimensions from there to 5.

    right: the best bin is the target's choice. kept: it and all drafted before it are.
    kept_relaxed: the same within 9 bins. confidence: what the drafter claimed for its best bin.
    """

    start: int
    right: tuple[float, ...]
    kept: tuple[float, ...]
    kept_relaxed: tuple[float, ...]
    confidence: tuple[float, ...]

    @classmethod
    def of(cls, claims: Tensor, bins: Tensor, start: int) -> AcceptanceScore:
        """claims: `[B, 6, 256]`, of which dimensions before `start` are left out. bins: int64 `[B, 7]`."""
        confidence, best = claims[:, start:].max(dim=-1)
        distance = (best - bins[:, start : start + best.shape[1]]).abs()
        kept = [(distance <= radius).cumprod(dim=1).float().mean(dim=0) for radius in RADII]
        shares = ((distance == 0).float().mean(dim=0), *kept, confidence.mean(dim=0))
        right, exactly, relaxed, claimed = (tuple(round(value, 4) for value in share.tolist()) for share in shares)
        return cls(start, right, exactly, relaxed, claimed)

    @property
    def length(self) -> float:
        """Tokens that a pass of the target gains with this draft, its own among them, under exact acceptance."""
        return 1.0 + sum(self.kept)

    @property
    def length_relaxed(self) -> float:
        return 1.0 + sum(self.kept_relaxed)


def average(scores: list[tuple[int, AcceptanceScore]]) -> AcceptanceScore:
    """Of several batches, given with their sizes."""
    sizes = torch.tensor([float(size) for size, _ in scores])

    def mean(name: str) -> tuple[float, ...]:
        values = torch.tensor([getattr(score, name) for _, score in scores])
        return tuple(round(value, 4) for value in ((sizes[:, None] * values).sum(dim=0) / sizes.sum()).tolist())

    return AcceptanceScore(scores[0][1].start, mean("right"), mean("kept"), mean("kept_relaxed"), mean("confidence"))
