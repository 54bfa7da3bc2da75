"""The target's passes together with what is made of them on the device, so that a pass is one launch.

Knows the few numbers that go to the device before a pass, as one copy, and come back after it, as another. Knows
nothing of who drafts, or of what becomes of an action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from policy.decoding.acceptance.base import AcceptanceRule, AcceptanceState
from policy.decoding.cache import CachePool
from policy.decoding.capture import Record, captured
from policy.decoding.pictures import GRID, Sketcher, is_still, picture_features
from policy.decoding.progress import ActionProgress
from policy.decoding.prompt_batch import PromptBatch
from policy.decoding.target_passes import TargetPasses
from policy.decoding.transfer import to_device
from policy.decoding.tree import DRAFTED_DIMENSIONS, Draft, TokenTree
from policy.decoding.verification import Verification, judge
from policy.openvla.config import ACTION_DIMENSIONS
from policy.openvla.model import OpenVLA


@dataclass(frozen=True, slots=True)
class Known:
    """What a pass is told beside its tree, of B sessions: made on the host, read on the device.

    decided: token ids int64 `[B, 6]`, of which the first `counts` (int64 `[B]`) count; none before the prompt is read.
    seen: bool `[B]`, whether there is a picture before this one. state: what rules remember.
    """

    decided: Tensor
    counts: Tensor
    seen: Tensor
    state: AcceptanceState

    @classmethod
    def at_first(cls, seen: Sequence[bool], state: AcceptanceState) -> Known:
        """Before anything is decided."""
        batch = len(seen)
        decided = torch.zeros(batch, DRAFTED_DIMENSIONS, dtype=torch.int64)
        return cls(decided, torch.zeros(batch, dtype=torch.int64), torch.tensor(seen), state)

    def after(self, progress: Sequence[ActionProgress]) -> Known:
        """When so much is decided."""
        counts = [len(action.ids) for action in progress]
        padding = [0] * DRAFTED_DIMENSIONS
        decided = [[*action.ids, *padding][:DRAFTED_DIMENSIONS] for action in progress]
        return replace(self, decided=torch.tensor(decided), counts=torch.tensor(counts))

    def pack(self) -> np.ndarray:
        """All of it side by side, int64 `[B, 23]`; floats travel as their bits."""
        state = self.state
        columns = torch.stack([self.counts, self.seen.long(), state.repeats], dim=1)
        errors = state.signed_error.view(torch.int32).long()
        return torch.cat([columns, self.decided, state.previous, errors], dim=1).numpy()

    @classmethod
    def unpack(cls, packed: Tensor) -> Known:
        """What `pack` packed, wherever it is now."""
        counts, seen, repeats = packed[:, :3].unbind(dim=1)
        decided, previous, errors = packed[:, 3:].split([DRAFTED_DIMENSIONS, ACTION_DIMENSIONS, ACTION_DIMENSIONS], 1)
        state = AcceptanceState(errors.int().view(torch.float32), previous, repeats)
        return cls(decided, counts, seen.bool(), state)


_KNOWN = 3 + DRAFTED_DIMENSIONS + 2 * ACTION_DIMENSIONS  # columns


@dataclass(frozen=True, slots=True, eq=False)
class Desk:
    """Where prompts of one shape lie while their actions are decoded, at addresses that stay.

    prompts: their embeddings and lengths. before, picture: float32 `[B, features]`, see `picture_features`, of the
    sessions' last frames and of these. hidden: `[B, 1 + nodes, width]`, the hidden states that the last pass's logits
    came from. prompt_hidden: `[B, S, width]`, the prompts' hidden states. The last two only where a head needs them.
    """

    prompts: PromptBatch
    before: Tensor
    picture: Tensor
    hidden: Tensor
    prompt_hidden: Tensor


class JudgedPasses:
    """Passes over the same prompts: `lay` and `look` first, then `prefill`, and then any number of `extend`.

    nodes: the largest number of nodes of any tree. sketches: whether `look` shall make what tells pictures apart.
    keeps_hidden: whether hidden states are kept for a head. record: replays everything that belongs to a pass as one;
    it runs launch by launch unless given.
    """

    def __init__(
        self,
        model: OpenVLA,
        rule: AcceptanceRule,
        nodes: int,
        sketches: bool = False,
        keeps_hidden: bool = False,
        record: Record | None = None,
    ) -> None:
        self._model, self._rule, self._nodes = model, rule, nodes
        self._sketch = Sketcher(GRID**2 * model.config.language.width, model.device) if sketches else None
        self._keeps_hidden = keeps_hidden
        self._caches = CachePool(model)
        self._desks: dict[tuple[int, int], Desk] = {}
        self._look = captured(self._run_look, record)
        self._prefill = captured(self._run_prefill, record)
        self._extend = captured(self._run_extend, record)

    def lay(self, prompts: PromptBatch, pictures: Sequence[Tensor | None]) -> Desk:
        """Put prompts and the sessions' last pictures (None where there is none) on the desk for their shape."""
        batch, longest, _ = prompts.embeddings.shape
        desk = self._desks.get((batch, longest))
        if desk is None:
            desk = self._desks[batch, longest] = self._make_desk(prompts)
        desk.prompts.embeddings.copy_(prompts.embeddings)
        desk.prompts.lengths.copy_(prompts.lengths)
        for place, picture in zip(desk.before, pictures, strict=True):
            if picture is not None:
                place.copy_(picture)
        return desk

    def look(self, desk: Desk) -> Tensor:
        """Put the pictures' features on the desk; sketches of them, float32 `[B, 64]`, or `[B, 0]` unless wanted."""
        return self._look((), desk)

    def prefill(self, desk: Desk, known: Known, drafts: Sequence[Draft], nodes: int) -> Verification:
        """Read the prompts and trees of complete actions behind them, padded to `nodes`."""
        return self._told(self._prefill, desk, known, drafts, nodes)

    def extend(self, desk: Desk, known: Known, drafts: Sequence[Draft], nodes: int) -> Verification:
        """Read what is decided, at least one token of each session, and trees that continue it."""
        return self._told(self._extend, desk, known, drafts, nodes)

    def _told(
        self, run: Callable[..., Tensor], desk: Desk, known: Known, drafts: Sequence[Draft], nodes: int
    ) -> Verification:
        """One copy there, one launch and one copy back: each copy costs more than its numbers."""
        tree = TokenTree.pack(drafts, nodes).reshape(len(drafts), -1)
        asked = to_device(np.concatenate([known.pack(), tree], axis=1), self._model.device)
        return Verification.unpack(run((asked,), desk).cpu().numpy(), nodes)

    def _run_look(self, desk: Desk) -> Tensor:
        desk.picture.copy_(picture_features(desk.prompts.embeddings))
        return desk.picture[:, :0] if self._sketch is None else self._sketch(desk.picture)

    def _run_prefill(self, asked: Tensor, desk: Desk) -> Tensor:
        known, tree = _unpack(asked)
        passes = TargetPasses(self._model, desk.prompts, self._nodes, self._caches)
        logits = passes.prefill(tree)
        if self._keeps_hidden:
            desk.prompt_hidden.copy_(passes.prompt_hidden)
        return self._judged(passes, logits, known, tree, desk)

    def _run_extend(self, asked: Tensor, desk: Desk) -> Tensor:
        known, tree = _unpack(asked)
        passes = TargetPasses(self._model, desk.prompts, self._nodes, self._caches)
        return self._judged(passes, passes.extend(known.decided, known.counts, tree), known, tree, desk)

    def _judged(self, passes: TargetPasses, logits: Tensor, known: Known, tree: TokenTree, desk: Desk) -> Tensor:
        if self._keeps_hidden:
            desk.hidden[:, : 1 + tree.nodes].copy_(passes.hidden)
        still = known.seen & is_still(desk.before, desk.picture)
        return judge(self._rule, self._model.config.action_vocabulary, tree, logits, known.state, still)

    def _make_desk(self, prompts: PromptBatch) -> Desk:
        batch, longest, width = prompts.embeddings.shape
        empty = prompts.embeddings.new_zeros
        laid = PromptBatch(empty(batch, longest, width), torch.zeros_like(prompts.lengths), keys=())
        features = empty(batch, GRID**2 * width, dtype=torch.float32)
        rows, slots = (1 + self._nodes, longest) if self._keeps_hidden else (0, 0)
        return Desk(laid, features, features.clone(), empty(batch, rows, width), empty(batch, slots, width))


def _unpack(asked: Tensor) -> tuple[Known, TokenTree]:
    tree = asked[:, _KNOWN:]
    return Known.unpack(asked[:, :_KNOWN]), TokenTree.unpack(tree.reshape(len(tree), 4, tree.shape[1] // 4))
