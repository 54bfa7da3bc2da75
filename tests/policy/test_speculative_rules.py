"""The decoding loop on a mock target: any trees, any rule, any tail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mock_target import ACTION_VOCABULARY, MockTarget
from random_trees import drafts

from policy.decoding import judged_passes
from policy.decoding.acceptance import make_rule
from policy.decoding.speculative import SpeculativeDecoder
from policy.decoding.stopwatch import Stopwatch
from policy.decoding.tree import DRAFTED_DIMENSIONS, Draft
from policy.drafting.base import DraftContext
from policy.drafting.placement import Placement
from policy.openvla.action_tokens import ActionStatistics
from policy.types import DecodeTrace

STATISTICS = ActionStatistics(-np.ones(7), np.ones(7), np.array([True] * 6 + [False]))
RULES = st.sampled_from(
    [
        ("exact", {}),
        ("spec-vla", {"radius": 0}),
        ("spec-vla", {"radius": 40}),
        ("corrected", {"radius": 0}),
        ("corrected", {"radius": 40}),
        ("physical", {"translation_mm": 8.0, "rotation_mrad": 60.0}),
        ("typical", {"ratio": 0.05}),
    ]
)
TAILS = st.sampled_from(["jacobi", "tree", "plain"])
often = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class AnyTrees:
    """In place of a `Placement`: the next tree is whatever hypothesis draws."""

    nodes = tail_nodes = 12

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def plan(self, start: int, *_: object) -> Draft:
        return self._data.draw(drafts(start=start))

    def learn(self, proposals: Mapping[str, np.ndarray], choices: np.ndarray, *_: object) -> None:
        assert len(choices) == 7

    def prepare(self) -> None:
        pass


class Chains:
    """In place of a `Placement`: what was proposed first, without alternatives."""

    nodes = tail_nodes = DRAFTED_DIMENSIONS

    def plan(self, start: int, proposals: Mapping[str, np.ndarray], *_: object) -> Draft:
        complete = (
            (name, bins[start:6].tolist()) for name, bins in proposals.items() if bins[start:6].min(initial=0) >= 0
        )
        name, tokens = next(complete, ("", []))
        return Draft.chain(start, tokens, name)

    def learn(self, proposals: Mapping[str, np.ndarray], choices: np.ndarray, *_: object) -> None:
        assert len(choices) == 7

    def prepare(self) -> None:
        pass


class Somebody:
    """A drafter that says what it is told to, here by `answer`."""

    name, needs_features, heeds_known = "somebody", False, True

    def __init__(self, answer: Any = lambda context: None) -> None:
        self._answer = answer

    def propose(self, context: DraftContext) -> np.ndarray | None:
        return self._answer(context)

    def observe(self, context: DraftContext, action: np.ndarray) -> None:
        assert len(action) == 7


def run(target: MockTarget, decoder: SpeculativeDecoder, batch: int = 2) -> tuple[list[list[int]], list[DecodeTrace]]:
    prompts, sessions = target.prompts(batch), [str(row) for row in range(batch)]
    ids, traces = decoder.decode(prompts, sessions, Stopwatch(torch.device("cpu")))
    return ids.tolist(), traces


def decoder_for(target: MockTarget, rule: tuple[str, dict], **parts: Any) -> SpeculativeDecoder:
    return SpeculativeDecoder(cast(Any, target), make_rule(*rule, STATISTICS), **parts)


@often
@given(st.data(), st.integers(0, 10**6), RULES, TAILS, st.sampled_from([0.0, 0.2]))
def test_whatever_is_drafted(
    monkeypatch: pytest.MonkeyPatch, data: st.DataObject, seed: int, rule: tuple[str, dict], tail: str, strays: float
) -> None:
    target = MockTarget(seed, strays)
    monkeypatch.setattr(judged_passes, "TargetPasses", target.passes)
    decoder = decoder_for(target, rule, drafters=[Somebody()], placement=AnyTrees(data), tail=tail)
    for _ in range(2):
        target.forwards = 0
        ids, traces = run(target, decoder)
        assert target.forwards == max(trace.target_passes for trace in traces) <= 7
        for row, trace in enumerate(traces):
            assert sum(trace.accepted_per_pass) == 7
            assert min(trace.accepted_per_pass) >= 1
            assert len(trace.accepted_per_pass) == len(trace.drafters) == trace.target_passes
            assert sum(not source for source in trace.sources) == trace.target_passes
            if rule[0] == "exact" or rule[1].get("radius") == 0:
                assert ids[row] == target.greedy(row)
            if rule[0] in ("exact", "corrected"):
                assert trace.deviation_bins == (0,) * 7
            if rule[0] == "spec-vla":
                assert max(map(abs, trace.deviation_bins)) <= rule[1]["radius"]
            assert [bins for source, bins in zip(trace.sources, trace.deviation_bins, strict=True) if not source] == (
                [0] * trace.target_passes
            )


def test_drafters_are_asked_again_only_if_they_heed_what_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    target, wrong, asked = MockTarget(3, 0.0), np.zeros(7, np.int64), {"steady": [], "heeding": []}
    monkeypatch.setattr(judged_passes, "TargetPasses", target.passes)
    drafters = [Somebody(lambda context, name=name: asked[name].append(len(context.known)) or wrong) for name in asked]
    for drafter, name in zip(drafters, asked, strict=True):
        drafter.name, drafter.heeds_known = name, name == "heeding"
    _, (trace,) = run(target, decoder_for(target, ("exact", {}), drafters=drafters, tail="tree"), batch=1)
    assert trace.target_passes > 2
    assert asked["steady"] == [0]
    assert asked["heeding"][0] == 0
    assert len(asked["heeding"]) > 2
    assert asked["heeding"] == sorted(set(asked["heeding"]))


@pytest.mark.parametrize("rule", ["spec-vla", "corrected"])
def test_a_radius_of_zero_is_exact_acceptance(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    """Not only the tokens: trees, passes and who drafted them, which is why sweeps measure it once."""

    def traces(rule: tuple[str, dict]) -> list[list[DecodeTrace]]:
        target, chance = MockTarget(3, 0.0), np.random.default_rng(4)
        monkeypatch.setattr(judged_passes, "TargetPasses", target.passes)
        near = bins_of(target.greedy(0))
        drafter = Somebody(lambda context: (near + chance.integers(-2, 3, 7)).clip(0, 255))
        placement = Placement(nodes=16, confidence=0.0, reach=make_rule(*rule, STATISTICS).reach)
        decoder = decoder_for(target, rule, drafters=[drafter], placement=placement, tail="tree")
        return [run(target, decoder)[1] for _ in range(12)]

    exact = traces(("exact", {}))
    assert len({trace.target_passes for batch in exact for trace in batch}) > 2
    assert traces((rule, {"radius": 0})) == exact


def bins_of(ids: list[int]) -> np.ndarray:
    return ACTION_VOCABULARY - 1 - np.array(ids)


@pytest.mark.parametrize("tail", ["jacobi", "tree", "plain"])
@pytest.mark.parametrize(
    ("shift", "passes"),
    [(None, 7), (128, 7), (0, 1)],
)
def test_empty_wrong_and_right_drafts(
    monkeypatch: pytest.MonkeyPatch, tail: str, shift: int | None, passes: int
) -> None:
    """The draft is the plain action, shifted in every bin, or nothing. This target's choices depend on all tokens
    before, so what it says after wrong ones helps no tail.
    """
    target = MockTarget(5)
    monkeypatch.setattr(judged_passes, "TargetPasses", target.passes)
    answer = None if shift is None else (bins_of(target.greedy(0)) + shift) % 256
    decoder = decoder_for(
        target, ("exact", {}), drafters=[Somebody(lambda context: answer)], placement=Chains(), tail=tail
    )
    ids, (trace,) = run(target, decoder, batch=1)
    assert ids == [target.greedy(0)]
    assert trace.target_passes == passes
    if shift == 0:
        assert trace.sources == ("somebody",) * DRAFTED_DIMENSIONS + ("",)


def test_jacobi_goes_on_from_what_refused_drafts_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that forgets its first token: one wrong bin in front costs one pass more, and not six."""
    target = MockTarget(8)
    remembering = target.logits
    target.logits = lambda row, prefix: remembering(row, (len(prefix), *prefix[1:]))  # type: ignore[method-assign]
    monkeypatch.setattr(judged_passes, "TargetPasses", target.passes)
    drafted = bins_of(target.greedy(0))
    drafted[0] = (drafted[0] + 50) % 256
    decoder = decoder_for(target, ("exact", {}), drafters=[Somebody(lambda context: drafted)], tail="jacobi")
    ids, (trace,) = run(target, decoder, batch=1)
    assert ids == [target.greedy(0)]
    assert trace.accepted_per_pass == (1, 6)
    assert trace.drafters == ("", "jacobi")


def test_corrected_tokens_are_what_later_passes_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pass that emitted other tokens than were drafted, the next is conditioned on the emitted ones."""
    target = MockTarget(3)
    monkeypatch.setattr(judged_passes, "TargetPasses", target.passes)
    first = bins_of(target.greedy(0))[0]
    near = np.array([min(first + 5, 255), *[0] * 6])
    drafter = Somebody(lambda context: near)
    decoder = decoder_for(target, ("corrected", {"radius": 5}), drafters=[drafter], placement=Chains(), tail="plain")
    ids, (trace,) = run(target, decoder, batch=1)
    assert trace.accepted_per_pass[0] == 2
    after_the_draft = int(target.logits(0, (ACTION_VOCABULARY - 1 - int(near[0]),)).argmax())
    expected = [target.greedy(0)[0], after_the_draft]
    while len(expected) < 7:
        expected.append(int(target.logits(0, tuple(expected)).argmax()))
    assert ids == [expected]


def test_history_is_the_targets_choice_and_ends_with_the_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    target = MockTarget(3)
    monkeypatch.setattr(judged_passes, "TargetPasses", target.passes)
    seen: list[list[list[int]]] = []

    def answer(context: DraftContext) -> np.ndarray:
        seen.append(context.history.tolist())
        return np.clip(bins_of(target.greedy(0)) + 3, 0, 255)

    rule = ("spec-vla", {"radius": 3})
    decoder = decoder_for(target, rule, drafters=[Somebody(answer)], placement=Chains(), tail="plain")
    _, (trace,) = run(target, decoder, batch=1)
    assert any(trace.deviation_bins)
    ids, _ = run(target, decoder, batch=1)
    decoder.forget("0")
    run(target, decoder, batch=1)
    executed, deviation = bins_of(ids[0]), np.array(trace.deviation_bins)
    assert seen == [[], [(executed - deviation).tolist()], []]
    with pytest.raises(ValueError, match="one action at a time"):
        decoder.decode(target.prompts(2), ["a", "a"], Stopwatch(torch.device("cpu")))
