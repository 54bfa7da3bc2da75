"""A head beside the target while one batch of actions is decoded: gathers the features it drafts from.

Knows which hidden state chose which token. Knows nothing of how the head drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from policy.decoding.judged_passes import Desk
from policy.decoding.progress import ActionProgress
from policy.decoding.transfer import Upload
from policy.decoding.tree import DRAFTED_DIMENSIONS
from policy.drafting.base import Head

# A head drafts behind at least one decided token, and at most so many still leave it something to draft.
DECIDED = DRAFTED_DIMENSIONS - 1


class HeadTail:
    """Made for one batch of prompts; `follow` is called after every pass of the target but the last."""

    def __init__(self, head: Head, desk: Desk, upload: Upload) -> None:
        self._head = head
        self._upload = upload
        self._desk = desk
        self._has_read = False
        batch, _, width = desk.prompts.embeddings.shape
        self._features = desk.hidden.new_zeros(batch, DECIDED, width)

    def follow(self, progress: Sequence[ActionProgress], claims: Sequence[dict[str, np.ndarray]]) -> None:
        """Put the head's draft of what is left, float32 `[6, 256]`, among each session's claims, under its name."""
        self._take(progress)
        unfinished = [row for row, action in enumerate(progress) if len(action.ids) < DRAFTED_DIMENSIONS]
        if unfinished:  # else only grippers are left, which are never drafted
            drafted = self._draft(progress)
            for row in unfinished:
                claims[row][self._head.name] = drafted[row]

    def _take(self, progress: Sequence[ActionProgress]) -> None:
        """Keep the hidden states that chose the tokens of the last pass."""
        source = np.tile(np.arange(DECIDED), (len(progress), 1))  # row by row what is there already
        for row, action in enumerate(progress):
            end = len(action.ids)
            if end <= DECIDED:
                source[row, end - len(action.rows) : end] = np.array(action.rows) + DECIDED
        found = torch.cat([self._features, self._desk.hidden], dim=1)
        wanted = self._upload(source)
        self._features = found.gather(1, wanted[:, :, None].expand(-1, -1, found.shape[2]))

    def rehearse(self) -> None:
        """Run every draft that these prompts may need. Their pass has been run."""
        self._read()
        batch, device = len(self._features), self._features.device
        for count in range(1, DECIDED + 1):
            counts = torch.full((batch,), count, device=device)
            bins = torch.zeros(batch, DECIDED, dtype=torch.int64, device=device)
            self._head.draft(bins, self._features, counts, count)

    def _draft(self, progress: Sequence[ActionProgress]) -> np.ndarray:
        """Chances float32 `[B, 6, 256]` on the host; what stands in rows of actions that are done means nothing."""
        self._read()
        counts = [min(len(action.ids), DECIDED) for action in progress]
        bins = np.zeros((len(progress), DECIDED), np.int64)
        for row, action, count in zip(bins, progress, counts, strict=True):
            row[:count] = action.bins[:count]
        moved = self._upload(np.column_stack([bins, counts]))
        chances: Tensor = self._head.draft(moved[:, :-1], self._features, moved[:, -1], min(counts))
        return chances.cpu().numpy()

    def _read(self) -> None:
        """Once for each action, and only for those that the prompts' pass did not finish."""
        if not self._has_read:
            prompts = self._desk.prompts
            self._head.read(prompts.embeddings, self._desk.prompt_hidden, prompts.lengths)
            self._has_read = True
