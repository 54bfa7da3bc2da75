"""How often speculation under exact acceptance emits what plain decoding emits, and how close the call was otherwise.

Knows tokens and logits margins. Knows nothing of files or of how prompts came about. In float32 agreement should be
complete; in bfloat16 passes of different shapes round differently, which turns near-ties, and the margins say so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.config import ActionDecoder
from policy.decoding.prompt_batch import PromptBatch
from policy.decoding.stopwatch import Stopwatch
from policy.drafting.base import DraftContext
from policy.openvla.config import ACTION_BINS, ACTION_DIMENSIONS
from policy.openvla.model import OpenVLA


@dataclass(frozen=True, slots=True)
class Reference:
    """Plain decoding of B prompts: ids int64 `[B, 7]` and, `[B, 7]`, how far the best logit lies above the second."""

    ids: np.ndarray
    margins: np.ndarray

    @classmethod
    def of(cls, model: OpenVLA, prompts: PromptBatch) -> Reference:
        steps = list(AutoregressiveDecoder(model).steps(prompts))
        best = torch.stack([step.logits.topk(2).values for step in steps], dim=1)  # [B, 7, 2]
        ids = torch.stack([step.tokens for step in steps], dim=1)
        return cls(ids.cpu().numpy(), (best[:, :, 0] - best[:, :, 1]).cpu().numpy())


@dataclass(slots=True)
class Agreement:
    """One decoder's agreement with the reference, growing batch by batch.

    equal_tokens: positions with the same id. decided_alike: positions before the first difference of their action,
    where both decoders have seen the same. first_differences: actions by the dimension in which they first differ.
    margins: the reference's margin there.
    """

    name: str
    actions: int = 0
    equal_tokens: int = 0
    decided_alike: int = 0
    passes: int = 0
    first_differences: list[int] = field(default_factory=lambda: [0] * ACTION_DIMENSIONS)
    margins: list[float] = field(default_factory=list)

    def add(self, ids: np.ndarray, passes: Iterable[int], reference: Reference) -> None:
        """Count B actions, ids int64 `[B, 7]`."""
        equal = ids == reference.ids
        self.actions += len(ids)
        self.passes += sum(passes)
        self.equal_tokens += int(equal.sum())
        self.decided_alike += int(np.logical_and.accumulate(equal, axis=1).sum())
        for row in np.flatnonzero(~equal.all(axis=1)):
            first = int(equal[row].argmin())
            self.first_differences[first] += 1
            self.margins.append(float(reference.margins[row, first]))

    @property
    def differing_actions(self) -> int:
        return sum(self.first_differences)

    def row(self) -> dict[str, Any]:
        """Rates for a results table; at least one action must have been added."""
        compared = self.decided_alike + self.differing_actions
        return {
            "decoding": self.name,
            "actions": self.actions,
            "action_agreement": 1 - self.differing_actions / self.actions,
            "token_agreement": self.equal_tokens / (self.actions * ACTION_DIMENSIONS),
            "decision_agreement": self.decided_alike / compared,
            "passes": self.passes / self.actions,
            "first_differences": list(self.first_differences),
            "margin_median_at_differences": float(np.median(self.margins)) if self.margins else None,
            "margin_max_at_differences": max(self.margins, default=None),
        }


class Scripted:
    """A drafter that proposes what was put in its queue, in order: how a comparison drafts right and wrong."""

    needs_features, heeds_known = False, True

    def __init__(self, name: str) -> None:
        self.name = name
        self.queue: deque[np.ndarray] = deque()

    def propose(self, context: DraftContext) -> np.ndarray | None:
        return None if context.known or not self.queue else self.queue.popleft()

    def observe(self, context: DraftContext, action: np.ndarray) -> None:
        """What it is told does not depend on what happens."""

    def fill(self, right: np.ndarray, random: np.random.Generator) -> None:
        """Queue drafts for B actions whose bins, int64 `[B, 7]`, are known beforehand, as this drafter's name says:
        "right", "wrong" (in every bin) or "random".
        """
        if self.name == "wrong":
            right = (right + random.integers(1, ACTION_BINS, right.shape)) % ACTION_BINS
        elif self.name == "random":
            right = random.integers(0, ACTION_BINS, right.shape)
        self.queue = deque(right)


def compare(
    agreement: Agreement, decoder: ActionDecoder, prompts: PromptBatch, sessions: list[str], reference: Reference
) -> None:
    """Decode one batch and count how it agrees."""
    ids, traces = decoder.decode(prompts, sessions, Stopwatch(decoder.model.device))
    agreement.add(ids.numpy(), (trace.target_passes for trace in traces), reference)
