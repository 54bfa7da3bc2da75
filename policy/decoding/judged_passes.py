"""The target's passes together with what is made of them on the device, so that a pass is one launch.

Knows the few numbers that go to the device before a pass and come back after it; both copies belong to the pass. Knows
nothing of who drafts, or of what becomes of an action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from policy.decoding.acceptance.base import AcceptanceRule, AcceptanceState
from policy.decoding.cache import CachePool
from policy.decoding.capture import Record, captured
from policy.decoding.pictures import GRID, is_still, picture_features
from policy.decoding.prompt_batch import PromptBatch
from policy.decoding.target_passes import TargetPasses
from policy.decoding.transfer import mark, shared_memory
from policy.decoding.tree import DRAFTED_DIMENSIONS, TREE_COLUMNS, Draft, TokenTree
from policy.decoding.verification import PathChoice, Verification, judge, judged_columns
from policy.openvla.config import ACTION_DIMENSIONS
from policy.openvla.model import OpenVLA


@dataclass(frozen=True, slots=True)
class Known:
    """What a pass is told beside its tree, on the device.

    seen: bool `[B]`, whether there is a picture before this one. state: what rules remember. decided: token ids int64
    `[B, 6]`, of which the first `counts` (int64 `[B]`) count; none before the prompt is read.
    """

    seen: Tensor
    state: AcceptanceState
    decided: Tensor
    counts: Tensor

    @staticmethod
    def remembered(seen: Sequence[bool], state: AcceptanceState) -> np.ndarray:
        """What is the same in all passes of an action, int64 `[B, 16]` on the host; floats travel as their bits."""
        errors = state.signed_error.numpy().view(np.int32)
        return np.column_stack([seen, state.repeats.numpy(), state.previous.numpy(), errors])

    @classmethod
    def unpack(cls, packed: Tensor) -> Known:
        """Of int64 `[B, 23]`: what `remembered` gives, and then how many ids are decided, and which."""
        seen, repeats, counts = packed[:, 0], packed[:, 1], packed[:, _REMEMBERED]
        previous, errors = packed[:, 2:_REMEMBERED].split(ACTION_DIMENSIONS, dim=1)
        state = AcceptanceState(errors.int().view(torch.float32), previous, repeats)
        return cls(seen.bool(), state, packed[:, _REMEMBERED + 1 : _KNOWN], counts)


_REMEMBERED = 2 + 2 * ACTION_DIMENSIONS  # columns
_KNOWN = _REMEMBERED + 1 + DRAFTED_DIMENSIONS
_PADDING = [0] * DRAFTED_DIMENSIONS


@dataclass(frozen=True, slots=True)
class Note:
    """The numbers of one pass on the host, at addresses that stay: int64 `[B, columns]` asked, and those answered."""

    asked: Tensor
    told: Tensor


@dataclass(slots=True, eq=False)
class Desk:
    """Where prompts of one shape lie while their actions are decoded, at addresses that stay.

    prompts: their embeddings and lengths. before, picture: float32 `[B, features]`, see `picture_features`, of the
    sessions' last frames and of these. still: int64 `[B]`, whether the two are one picture. notes: by the tree's nodes.
    remembered: int64 `[B, 16]`, on the host, what is known of the sessions.
    hidden: `[B, 1 + nodes, width]`, the hidden states that the last pass's logits came from. prompt_hidden:
    `[B, S, width]`, the prompts' hidden states. Both only where a head needs them.
    """

    prompts: PromptBatch
    before: Tensor
    picture: Tensor
    still: Tensor
    hidden: Tensor
    prompt_hidden: Tensor
    notes: dict[int, Note]
    remembered: np.ndarray


class JudgedPasses:
    """Passes over the same prompts: `lay` first, then `prefill`, and then any number of `extend`.

    nodes: the largest number of nodes of any tree. path: which accepted drafts are followed, see `verification`.
    keeps_hidden: whether hidden states are kept for a head. record: replays everything that belongs to a pass as one;
    it runs launch by launch unless given.
    """

    def __init__(
        self,
        model: OpenVLA,
        rule: AcceptanceRule,
        nodes: int,
        path: PathChoice = "nearest",
        keeps_hidden: bool = False,
        record: Record | None = None,
    ) -> None:
        self._model, self._rule, self._nodes, self._path = model, rule, nodes, path
        self._keeps_hidden = keeps_hidden
        self._caches = CachePool(model)
        self._desks: dict[tuple[int, int], Desk] = {}
        self._prefill = captured(self._run_prefill, record)
        self._extend = captured(self._run_extend, record)

    def lay(self, prompts: PromptBatch, pictures: Sequence[Tensor | None], state: AcceptanceState) -> Desk:
        """Put prompts on the desk for their shape, beside the sessions' last pictures (None where there is none) and
        what rules remember of them.
        """
        batch, longest, _ = prompts.embeddings.shape
        desk = self._desks.get((batch, longest))
        if desk is None:
            desk = self._desks[batch, longest] = self._make_desk(prompts)
        desk.prompts.embeddings.copy_(prompts.embeddings)
        desk.prompts.lengths.copy_(prompts.lengths)
        for place, picture in zip(desk.before, pictures, strict=True):
            if picture is not None:
                place.copy_(picture)
        desk.remembered = Known.remembered([picture is not None for picture in pictures], state)
        return desk

    def prefill(self, desk: Desk, drafts: Sequence[Draft], nodes: int) -> Verification:
        """Read the prompts and trees of complete actions behind them, padded to `nodes`."""
        return self._told(self._prefill, desk, [[]] * len(drafts), drafts, nodes)

    def extend(self, desk: Desk, decided: Sequence[list[int]], drafts: Sequence[Draft], nodes: int) -> Verification:
        """Read the ids that are decided, at least one of each session, and trees that continue them."""
        return self._told(self._extend, desk, decided, drafts, nodes)

    def _told(
        self,
        run: Callable[..., None],
        desk: Desk,
        decided: Sequence[list[int]],
        drafts: Sequence[Draft],
        nodes: int,
    ) -> Verification:
        note = desk.notes.get(nodes)
        if note is None:
            note = desk.notes[nodes] = self._make_note(len(drafts), nodes)
        asked = note.asked.numpy()
        asked[:, :_REMEMBERED] = desk.remembered
        asked[:, _REMEMBERED] = [len(ids) for ids in decided]
        asked[:, _REMEMBERED + 1 : _KNOWN] = [[*ids, *_PADDING][:DRAFTED_DIMENSIONS] for ids in decided]
        asked[:, _KNOWN:] = TokenTree.pack(drafts, nodes)
        run((), desk, note)
        mark(self._model.device, patient=len(drafts) > 1)()
        return Verification.unpack(note.told.numpy().copy(), nodes)

    def _run_prefill(self, desk: Desk, note: Note) -> None:
        known, tree = self._read(note)
        desk.picture.copy_(picture_features(desk.prompts.embeddings))
        passes = TargetPasses(self._model, desk.prompts, self._nodes, self._caches, keeps_prompt=self._keeps_hidden)
        logits = passes.prefill(tree)
        if self._keeps_hidden:
            desk.prompt_hidden.copy_(passes.prompt_hidden)
        desk.still.copy_(known.seen & is_still(desk.before, desk.picture))
        self._answer(passes, logits, known, tree, desk, note)

    def _run_extend(self, desk: Desk, note: Note) -> None:
        known, tree = self._read(note)
        passes = TargetPasses(self._model, desk.prompts, self._nodes, self._caches)
        self._answer(passes, passes.extend(known.decided, known.counts, tree), known, tree, desk, note)

    def _read(self, note: Note) -> tuple[Known, TokenTree]:
        asked = note.asked.to(self._model.device, non_blocking=True)
        return Known.unpack(asked[:, :_KNOWN]), TokenTree.unpack(asked[:, _KNOWN:])

    def _answer(
        self, passes: TargetPasses, logits: Tensor, known: Known, tree: TokenTree, desk: Desk, note: Note
    ) -> None:
        if self._keeps_hidden:
            desk.hidden[:, : 1 + tree.nodes].copy_(passes.hidden)
        told = judge(
            self._rule, self._model.config.action_vocabulary, tree, logits, known.state, desk.still, self._path
        )
        note.told.copy_(told, non_blocking=True)

    def _make_desk(self, prompts: PromptBatch) -> Desk:
        batch, longest, width = prompts.embeddings.shape
        empty = prompts.embeddings.new_zeros
        features = empty(batch, GRID**2 * width, dtype=torch.float32)
        rows, slots = (1 + self._nodes, longest) if self._keeps_hidden else (0, 0)
        return Desk(
            prompts=PromptBatch(empty(batch, longest, width), torch.zeros_like(prompts.lengths), keys=()),
            before=features,
            picture=features.clone(),
            still=torch.zeros_like(prompts.lengths),
            hidden=empty(batch, rows, width),
            prompt_hidden=empty(batch, slots, width),
            notes={},
            remembered=np.zeros((batch, _REMEMBERED), np.int64),
        )

    def _make_note(self, batch: int, nodes: int) -> Note:
        asked, told = _KNOWN + TREE_COLUMNS * nodes, judged_columns(nodes, self._rule)
        asked_of, told_of = (
            shared_memory((batch, columns), torch.int64, self._model.device) for columns in (asked, told)
        )
        return Note(asked_of, told_of)
