"""A much smaller OpenVLA that looks at the frame itself and drafts before the target has read its prompt.

After Spec-LLaVA (2025, arXiv 2509.11961): a small model of the same kind drafts, its confidences say where a tree
grows, and the target verifies. Its checkpoint is an OpenVLA checkpoint like any other, with its own tokenizer and
vocabulary: what it shares with the target are bins, and so it must have been trained with the same action statistics.
Knows nothing of trees or of the target's network.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.capture import Record, captured
from policy.decoding.prompt_batch import PromptBatch
from policy.decoding.tree import DRAFTED_DIMENSIONS
from policy.drafting.base import Pending
from policy.openvla.action_tokens import ActionStatistics, load_statistics
from policy.openvla.checkpoint import CheckpointError, load_checkpoint
from policy.openvla.config import ACTION_BINS, IMAGE_SIDE, PATCHES
from policy.openvla.model import OpenVLA
from policy.openvla.prompt import Prompter

# Statistics are stored as decimal text by whoever trained a model; a thousandth of a bin moves nothing.
_SAME_BIN = 1e-3 * 2 / ACTION_BINS


class DraftVLA:
    """Satisfies `policy.drafting.base.SeeingDrafter`. record: replays the whole draft where given."""

    name = "draft-vla"

    def __init__(self, model: OpenVLA, prompter: Prompter, record: Record | None = None) -> None:
        self._model = model
        self._prompter = prompter
        self._decoder = AutoregressiveDecoder(model)
        self._draft = captured(self.chances, record)
        self._prompts = lru_cache(maxsize=256)(self._tokenize)
        # On a stream of its own it runs beside the target's vision towers, which leave most of a large GPU idle.
        self._stream = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None

    @classmethod
    def load(
        cls,
        directory: Path,
        statistics: ActionStatistics,
        device: torch.device,
        dtype: torch.dtype,
        record: Record | None = None,
    ) -> DraftVLA:
        """A draft model for a target with these action statistics. Raises CheckpointError where its bins are others."""
        check_same_bins(directory, statistics)
        model = load_checkpoint(directory, device, dtype)
        return cls(model, Prompter(directory, maximum_tokens=model.config.maximum_tokens), record)

    def look(self, pixels: Tensor, instructions: Sequence[str]) -> Pending:
        prompts = self._prompts(tuple(instructions))
        if self._stream is None:
            chances = self._draft((pixels, *prompts)).numpy()
            return lambda: chances
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            drafted = self._draft((pixels, *prompts))
            pixels.record_stream(self._stream)
            # Copied here, too: on the target's stream it would wait for the target's towers.
            host = torch.empty(drafted.shape, dtype=drafted.dtype, pin_memory=True)
            host.copy_(drafted, non_blocking=True)
            done = self._stream.record_event()

        def wait() -> np.ndarray:
            done.synchronize()
            return host.numpy()

        return wait

    def rehearse(self, batch: int, text: int) -> None:
        device = self._model.device
        pixels = torch.zeros(batch, 6, IMAGE_SIDE, IMAGE_SIDE, device=device)
        ids = torch.zeros(batch, text, dtype=torch.int64, device=device)
        self._draft((pixels, ids, torch.full((batch,), text + PATCHES, device=device)))

    def chances(self, pixels: Tensor, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Float32 `[B, 6, 256]` along the model's own greedy choice; see `policy.drafting.base.Pending`.

        pixels: `[B, 6, 224, 224]`. token_ids: int64 `[B, T]`, padded on the right. lengths: int64 `[B]`, of the prompts
        with their patches.
        """
        end = self._model.config.action_vocabulary
        embeddings = self._model.embed(token_ids, self._model.image_features(pixels))
        steps = islice(self._decoder.steps(PromptBatch(embeddings, lengths, keys=())), DRAFTED_DIMENSIONS)
        logits = torch.stack([step.logits[:, end - ACTION_BINS : end] for step in steps], dim=1)
        return torch.softmax(logits.flip(-1), dim=-1)  # ids count down where bins count up

    def _tokenize(self, instructions: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Ids and lengths as `chances` takes them, kept on the device."""
        return PromptBatch.ids(self._model, [self._prompter.token_ids(text) for text in instructions])


def check_same_bins(directory: Path, statistics: ActionStatistics) -> None:
    """Raise CheckpointError where none of a checkpoint's data sets has bins like these."""
    datasets = load_statistics(directory)
    if any(_same_bins(own, statistics) for own in datasets.values()):
        return
    raise CheckpointError(
        f"{directory}: none of its action statistics ({', '.join(sorted(datasets))}) are the target's (q01 "
        f"{statistics.q01.tolist()}, q99 {statistics.q99.tolist()}), so its bins mean other actions; train a draft "
        "model for this target with scripts/train_drafter.py --kind draft-vla"
    )


def _same_bins(own: ActionStatistics, wanted: ActionStatistics) -> bool:
    if own.q01.shape != wanted.q01.shape or (own.mask != wanted.mask).any():
        return False
    tolerance = _SAME_BIN * np.maximum(wanted.q99 - wanted.q01, 1e-6)
    return bool((np.abs([own.q01 - wanted.q01, own.q99 - wanted.q99])[:, wanted.mask] <= tolerance[wanted.mask]).all())
