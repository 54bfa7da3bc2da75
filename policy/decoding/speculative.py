"""Speculative decoding of actions: drafts ride in the prompt's own pass, and further passes finish what is left.

Knows the order of things: draft, verify, take, go on. How trees are laid into the cache (`target_passes`), judged
(`verification`, `acceptance`, together `judged_passes`) and planned (`policy.drafting`) is known elsewhere.

Every pass gains the tokens of a path that was accepted and one more, which the target chose itself. So an action of 7
tokens needs at most 7 passes, the prompt's included, which is what plain decoding always needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from policy.decoding.acceptance.base import AcceptanceRule, AcceptanceState
from policy.decoding.capture import Record
from policy.decoding.head_tail import HeadTail
from policy.decoding.judged_passes import JudgedPasses
from policy.decoding.memory import EpisodeMemory
from policy.decoding.pictures import Sketcher
from policy.decoding.progress import UNKNOWN, ActionProgress
from policy.decoding.prompt_batch import PromptBatch, Sight
from policy.decoding.stopwatch import Stopwatch
from policy.decoding.transfer import Upload
from policy.decoding.tree import DRAFTED_DIMENSIONS, Draft
from policy.decoding.verification import PathChoice, Verification
from policy.drafting.base import DraftContext, Drafter, Head, Pending, SeeingDrafter
from policy.drafting.placement import Placement
from policy.openvla.config import IMAGE_SIDE, PATCHES
from policy.openvla.model import OpenVLA
from policy.types import DecodeTrace

Tail = Literal["jacobi", "tree", "plain", "head"]
JACOBI: Final = "jacobi"
# By drafter, what is proposed to one session: bins int64 `[7]`, or as claims of networks chances float32 `[6, 256]`.
Proposals = dict[str, np.ndarray]

# Trees of one batch share a width, a multiple of this.
_WIDTHS = 8


class _Looking(NamedTuple):
    """What was begun when a frame came in: sketches of it, and by name what drafters make of it that see it."""

    sight: Sight | None = None
    sketches: Pending | None = None
    drafts: Mapping[str, Pending] = MappingProxyType({})


class _Lesson(NamedTuple):
    """A batch of actions that are over, session by session. still: see `Verification`."""

    contexts: list[DraftContext]
    progress: list[ActionProgress]
    proposals: list[Proposals]
    claims: list[Proposals]
    memories: list[EpisodeMemory]
    still: np.ndarray


class SpeculativeDecoder:
    """Drafts, verifies and accepts; remembers each session's episode until it is told to forget it.

    drafters: asked before the prompt is read, and again for the tail "tree"; none means an empty draft.
    placement: merges what they propose into a tree. tail: what drafts the tokens that the first pass left open:
    "jacobi" (what the target said along refused branches), "tree" (that, the drafters again and the head if there is
    one), "head" (it alone) or "plain" (nothing). seeing: asked before the prompt is read; what they said serves the
    tail "tree", too. path: which of several accepted drafts are followed, see `policy.decoding.verification`. record:
    how passes are replayed, see `JudgedPasses`.
    """

    def __init__(
        self,
        model: OpenVLA,
        rule: AcceptanceRule,
        drafters: Sequence[Drafter] = (),
        placement: Placement | None = None,
        tail: Tail = JACOBI,
        name: str = "speculative",
        seeing: Sequence[SeeingDrafter] = (),
        head: Head | None = None,
        path: PathChoice = "nearest",
        record: Record | None = None,
    ) -> None:
        self.model = model
        self.name = name
        self._rule = rule
        self._drafters = tuple(drafters)
        self._placement = placement or Placement(nodes=DRAFTED_DIMENSIONS, confidence=0.0, reach=rule.reach)
        self._tail = tail
        self._seeing = tuple(seeing)
        self._head = head
        self._upload = Upload(model.device)
        self._looking = _Looking()
        self._memories: dict[str, EpisodeMemory] = {}
        self._lessons: list[_Lesson] = []
        self._sketched = tuple(drafter.name for drafter in self._drafters if drafter.needs_features)
        self._sketcher = Sketcher(model.device, record) if self._sketched else None
        self._passes = JudgedPasses(model, rule, self._most_nodes, path, head is not None, record)

    @property
    def _most_nodes(self) -> int:
        return max(self._placement.nodes, self._placement.tail_nodes, DRAFTED_DIMENSIONS)

    def _widths(self, nodes: int) -> set[int]:
        """Of all padded trees of up to so many nodes, or of the chain of a whole action."""
        most = max(nodes, DRAFTED_DIMENSIONS)
        return {min(width, most) for width in range(0, most + _WIDTHS, _WIDTHS)}

    def forget(self, session: str) -> None:
        """A new episode of this session begins."""
        self._memories.pop(session, None)

    def look(self, sight: Sight) -> None:
        """Let drafters that look for themselves begin; `decode` of prompts with this sight uses what they find."""
        sketches = None if self._sketcher is None else self._sketcher.look(sight.pixels)
        drafts = {drafter.name: drafter.look(sight.pixels, sight.instructions) for drafter in self._seeing}
        self._looking = _Looking(sight, sketches, drafts)

    def rehearse(self, prompts: PromptBatch) -> None:
        """Run every pass that an action of prompts of these shapes may need, so that none is recorded later on."""
        batch = len(prompts.lengths)
        desk = self._passes.lay(prompts, [None] * batch, AcceptanceState.fresh(batch))
        for width in self._widths(self._placement.nodes):
            self._passes.prefill(desk, [Draft()] * batch, width)
        for width in self._widths(self._placement.tail_nodes):
            self._passes.extend(desk, [[0]] * batch, [Draft(1)] * batch, width)
        if self._head is not None:
            HeadTail(self._head, desk, self._upload).rehearse()
        if self._sketcher is not None:
            self._sketcher.look(torch.zeros(batch, 6, IMAGE_SIDE, IMAGE_SIDE, device=self.model.device))
        for drafter in self._seeing:
            drafter.rehearse(batch, prompts.embeddings.shape[1] - PATCHES)

    def decode(
        self, prompts: PromptBatch, sessions: Sequence[str], stopwatch: Stopwatch
    ) -> tuple[Tensor, list[DecodeTrace]]:
        """Action token ids, int64 `[sessions, 7]` on the host, and a trace for each; laps "prefill" and "decode" on the
        stopwatch. Rows beyond the sessions are nobody's: nothing is drafted for them, and they hold nobody up.

        Raises ValueError where a session is named twice, as its actions would each need the other one first, and where
        prompts come without the sight that a drafter needs.
        """
        if len(set(sessions)) < len(sessions):
            raise ValueError(f"a session can be given one action at a time, got sessions {list(sessions)}")
        memories = [self._memories.setdefault(name, EpisodeMemory()) for name in sessions]
        self.study()
        spare = len(prompts.lengths) - len(sessions)
        state = AcceptanceState.stack([memory.state for memory in [*memories, *[EpisodeMemory()] * spare]])
        desk = self._passes.lay(prompts, [*(memory.picture for memory in memories), *[None] * spare], state)
        looking = self._looked(prompts)
        contexts = self._contexts(prompts, memories, looking)
        proposals = [self._propose(context) for context in contexts]
        claims = self._seen(looking, len(memories))
        drafts = [self._placement.plan(0, *each) for each in zip(proposals, claims, strict=True)]
        vocabulary = self.model.config.action_vocabulary
        progress = [ActionProgress(vocabulary) for _ in sessions]
        everyone = [*progress, *[ActionProgress.nobodys(vocabulary)] * spare]
        head = None if self._head is None else HeadTail(self._head, desk, self._upload)
        width = _width(drafts, self._placement.nodes)
        found = self._passes.prefill(desk, [*drafts, *[Draft()] * spare], width)
        _take(progress, drafts, found)
        stopwatch.lap("prefill")
        while not all(action.done for action in progress):
            if head is not None:
                head.follow(everyone, claims)
            drafts = [self._draft_tail(*each) for each in zip(progress, contexts, proposals, claims, strict=True)]
            width = _width(drafts, self._placement.tail_nodes)
            decided = [action.ids for action in everyone]
            found = self._passes.extend(desk, decided, [*drafts, *[Draft(DRAFTED_DIMENSIONS)] * spare], width)
            _take(progress, drafts, found)
        traces = self._conclude(progress, memories, found)
        self._lessons.append(_Lesson(contexts, progress, proposals, claims, memories, found.still[: len(sessions)]))
        for memory, picture in zip(memories, desk.picture.clone(), strict=False):
            memory.picture = picture
        stopwatch.lap("decode")
        return torch.tensor([action.ids for action in progress]), traces

    def study(self) -> None:
        """Let drafters and placement learn from the last actions, which the robot has by now. About 1 ms on the host:
        best while nobody waits, else while the GPU looks at the next frame.
        """
        for lesson in self._lessons:
            emitted = torch.tensor([action.bins for action in lesson.progress])
            deviation = emitted - torch.tensor([action.choices for action in lesson.progress])
            state = AcceptanceState.stack([memory.state for memory in lesson.memories])
            state = self._rule.update(state, emitted, deviation, torch.from_numpy(lesson.still).bool())
            for row, (context, action, memory) in enumerate(
                zip(lesson.contexts, lesson.progress, lesson.memories, strict=True)
            ):
                memory.state = state.row(row)
                chosen = np.array(action.choices, np.int64)
                for drafter in self._drafters:
                    drafter.observe(context, chosen)
                self._placement.learn(lesson.proposals[row] | {JACOBI: action.guess}, chosen, lesson.claims[row])
        if self._lessons:
            self._placement.prepare()
        self._lessons.clear()

    def _looked(self, prompts: PromptBatch) -> _Looking:
        """What was begun by `look` or is begun now."""
        if names := [*self._sketched, *(drafter.name for drafter in self._seeing)]:
            if prompts.sight is None:
                raise ValueError(f"{', '.join(names)} must see the frames; give PromptBatch.embed the sight, too")
            if self._looking.sight is not prompts.sight:
                self.look(prompts.sight)
        looking, self._looking = self._looking, _Looking()
        return looking

    def _contexts(self, prompts: PromptBatch, memories: list[EpisodeMemory], looking: _Looking) -> list[DraftContext]:
        features: Sequence[np.ndarray | None] = [None] * len(memories)
        if looking.sketches is not None:
            features = list(looking.sketches())
        return [
            DraftContext(key, memory.history, features=row)
            for memory, row, key in zip(memories, features, prompts.keys, strict=False)
        ]

    def _seen(self, looking: _Looking, sessions: int) -> list[Proposals]:
        """What drafters that look for themselves say, for each session."""
        found: list[Proposals] = [{} for _ in range(sessions)]
        for name, pending in looking.drafts.items():
            for row, claims in zip(found, pending(), strict=False):
                row[name] = claims
        return found

    def _propose(self, context: DraftContext, before: Proposals | None = None) -> Proposals:
        """What drafters expect. before: what they expected when nothing was known, which holds for those that do not
        heed what is.
        """
        found: Proposals = {}
        for drafter in self._drafters:
            kept = None if before is None or drafter.heeds_known else before
            action = drafter.propose(context) if kept is None else kept.get(drafter.name)
            if action is not None:
                found[drafter.name] = action
        return found

    def _draft_tail(
        self, action: ActionProgress, context: DraftContext, proposals: Proposals, claims: Proposals
    ) -> Draft:
        """What to verify next behind the tokens that are decided."""
        start = min(len(action.ids), DRAFTED_DIMENSIONS)
        if self._tail == "plain" or action.done:
            return Draft(start)
        if self._tail == "head":
            return self._placement.plan(start, {}, claims)
        guess = self._complete(action.guess, proposals)
        if self._tail == JACOBI:
            tokens = guess[start:DRAFTED_DIMENSIONS]
            unknown = np.flatnonzero(tokens == UNKNOWN)
            return Draft.chain(start, tokens[: unknown[0] if len(unknown) else None].tolist(), JACOBI)
        again = self._propose(context.knowing(action.choices), proposals)
        return self._placement.plan(start, {JACOBI: guess} | again, claims)

    def _complete(self, guess: np.ndarray, proposals: Proposals) -> np.ndarray:
        """A guess with what it lacks from the first drafter that has an opinion."""
        for proposal in proposals.values():
            lacks = guess == UNKNOWN
            if not lacks.any():
                break
            guess = np.where(lacks, proposal, guess)
        return guess

    def _conclude(
        self, progress: list[ActionProgress], memories: list[EpisodeMemory], found: Verification
    ) -> list[DecodeTrace]:
        """Remember the finished actions, and write their traces. found: what came of the last pass."""
        for action, memory in zip(progress, memories, strict=True):
            memory.choices.append(np.array(action.choices, np.int64))
        reasons = self._rule.forced_reasons
        return [
            action.trace(tuple(reason for reason, applies in zip(reasons, row, strict=True) if applies))
            for action, row in zip(progress, found.forced, strict=False)
        ]


def _width(drafts: list[Draft], nodes: int) -> int:
    """Nodes that a tree of up to so many has, rounded up so that passes come in few shapes; of several trees, of which
    the largest mostly has them all, that many.
    """
    most = max(nodes, DRAFTED_DIMENSIONS)
    return most if len(drafts) > 1 else min(-(-len(drafts[0].tokens) // _WIDTHS) * _WIDTHS, most)


def _take(progress: list[ActionProgress], drafts: list[Draft], found: Verification) -> None:
    """Let unfinished actions take what came of a pass."""
    for row, (action, draft) in enumerate(zip(progress, drafts, strict=True)):
        if not action.done:
            rows = (found.choices[row], found.drafted_choices[row], found.emitted[row])
            action.take(draft, int(found.last[row]), *rows)
