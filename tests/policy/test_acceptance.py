"""Every rule against a slow oracle on random trees, and what all of them promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import acceptance_oracle as oracle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.decoding.acceptance import RULES, make_rule, rule_settings
from policy.decoding.acceptance.base import AcceptanceRule, AcceptanceState, Verdict, target_choice
from policy.decoding.acceptance.physical import PhysicalSettings
from policy.decoding.tree import Draft, TokenTree
from policy.openvla.action_tokens import ActionStatistics

GRIPPER = 6
RELAXED = ("spec-vla", "corrected", "physical", "typical")
few = settings(max_examples=40, deadline=None)


@dataclass(frozen=True)
class Case:
    """A random robot, random trees and what the target thinks of them; many tokens are near the target's choice."""

    robot: oracle.Robot
    tree: TokenTree
    logits: torch.Tensor
    depths: torch.Tensor
    state: AcceptanceState

    @property
    def statistics(self) -> ActionStatistics:
        return ActionStatistics(np.array(self.robot.q01), np.array(self.robot.q99), np.array([True] * 6 + [False]))

    def rule(self, name: str, **options: Any) -> AcceptanceRule:
        return make_rule(name, options, self.statistics)

    def judge(self, rule: AcceptanceRule) -> Verdict:
        return rule.accept(self.tree, self.logits, self.depths, self.state)

    @property
    def choice(self) -> torch.Tensor:
        return target_choice(self.logits)


def random_tree(random: np.random.Generator, nodes: int) -> Draft:
    """A tree of any shape; tokens are set later."""
    draft = Draft()
    for _ in range(nodes):
        shallow = [-1, *(node for node, depth in enumerate(draft.depths) if depth + 1 < GRIPPER)]
        parents = (*draft.parents, int(random.choice(shallow)))
        draft = Draft(0, (0,) * len(parents), parents, ("random",) * len(parents))
    return draft


def random_case(seed: int, batch: int = 2, nodes: int = 12) -> Case:
    random = np.random.default_rng(seed)
    low, high = -random.uniform(0.05, 1.0, 7), random.uniform(0.05, 1.0, 7)
    low[6], high[6] = 0.0, 1.0
    drafts, logits = [], np.empty((batch, nodes, 256), np.float32)
    for row in range(batch):
        draft = random_tree(random, nodes)
        # Siblings share a distribution. The choices of interest: at rest, about the gripper's boundary, at an end.
        peaks = {
            parent: int(random.choice([*random.integers(0, 256, 4), 128, 189, 192, 2])) for parent in draft.parents
        }
        centres = np.array([peaks[parent] for parent in draft.parents])
        tokens = np.clip(centres + random.integers(-12, 13, nodes), 0, 255)
        drafts.append(Draft(0, tuple(tokens.tolist()), draft.parents, draft.drafters))
        logits[row] = -random.uniform(0.01, 0.5) * np.abs(np.arange(256) - centres[:, None])
    tree = TokenTree.of(drafts, nodes)
    state = AcceptanceState(
        signed_error=torch.from_numpy(random.normal(0, 6, (batch, 7)).astype(np.float32)),
        previous=torch.full((batch, 7), -1),
        repeats=torch.from_numpy(random.integers(0, 6, batch)),
    )
    depths = tree.depths + torch.from_numpy(random.integers(0, 2, (batch, 1)))  # so that the gripper comes up as well
    return Case(oracle.Robot(low.tolist(), high.tolist()), tree, torch.from_numpy(logits), depths, state)


def assert_matches(case: Case, verdict: Verdict, expected: Callable[[int, int, int, int, list[float]], bool]) -> None:
    """expected: told row, dimension, token, choice and logits of a node."""
    for row, node in np.ndindex(*case.tree.tokens.shape):
        token, dimension = int(case.tree.tokens[row, node]), int(case.depths[row, node])
        logits = case.logits[row, node].tolist()
        choice = oracle.best_bin(logits)
        accepted = bool(verdict.accepted[row, node])
        assert accepted == expected(row, dimension, token, choice, logits), (row, node, dimension, token, choice)
        assert verdict.distance[row, node] == abs(token - choice)


physical_options = st.fixed_dictionaries(
    {
        "translation_mm": st.sampled_from([0.0, 0.4137, 1.2511, 5.113]),
        "rotation_mrad": st.sampled_from([0.0, 1.0193, 2.5177, 11.37]),
        "gripper_bins": st.sampled_from([0, 5, 60]),
        "relative": st.sampled_from([0.0, 0.0731, 0.2519, 1.0]),
        "floor_bins": st.sampled_from([0, 1, 3]),
        "budget_mm": st.sampled_from([0.0, 1.713, 5.0371, None]),
        "budget_mrad": st.sampled_from([0.0, 3.317, 10.191, None]),
        "retained": st.sampled_from([0.0, 0.5, 0.9, 1.0]),
        "emit": st.sampled_from(["draft", "target"]),
    }
)
options_of = {
    "exact": st.just({}),
    "spec-vla": st.fixed_dictionaries({"radius": st.integers(0, 20), "protect_gripper": st.booleans()}),
    "corrected": st.fixed_dictionaries({"radius": st.integers(0, 20), "protect_gripper": st.booleans()}),
    "physical": physical_options,
    "typical": st.fixed_dictionaries({"ratio": st.sampled_from([0.0501, 0.317, 0.713, 1.0])}),
}
any_rule = st.sampled_from(list(RULES)).flatmap(lambda name: st.tuples(st.just(name), options_of[name]))


@few
@given(st.integers(0, 10**6))
def test_exact_accepts_nothing_but_the_choice(seed: int) -> None:
    case = random_case(seed)
    verdict = case.judge(case.rule("exact"))
    assert_matches(case, verdict, lambda row, dimension, token, choice, logits: token == choice)
    assert torch.equal(verdict.emitted, case.choice)


@few
@given(st.integers(0, 10**6), st.sampled_from(["spec-vla", "corrected"]), options_of["spec-vla"])
def test_distance_rules_equal_the_oracle(seed: int, name: str, options: dict[str, Any]) -> None:
    case, chosen = random_case(seed), rule_settings(name, options)
    verdict = case.judge(case.rule(name, **options))
    assert_matches(
        case,
        verdict,
        lambda row, dimension, token, choice, logits: oracle.within_distance(
            chosen, case.robot, dimension, token, choice
        ),
    )
    assert torch.equal(verdict.emitted, case.tree.tokens if name == "spec-vla" else case.choice)


@few
@given(st.integers(0, 10**6), options_of["typical"])
def test_typical_equals_the_oracle(seed: int, options: dict[str, Any]) -> None:
    case = random_case(seed)
    verdict = case.judge(case.rule("typical", **options))
    assert_matches(
        case,
        verdict,
        lambda row, dimension, token, choice, logits: oracle.is_typical(
            options["ratio"], case.robot, dimension, token, logits
        ),
    )
    assert torch.equal(verdict.emitted, case.tree.tokens)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10**6), physical_options)
def test_physical_equals_the_oracle(seed: int, options: dict[str, Any]) -> None:
    case, chosen = random_case(seed), PhysicalSettings(**options)
    verdict = case.judge(case.rule("physical", **options))
    assert_matches(
        case,
        verdict,
        lambda row, dimension, token, choice, logits: oracle.is_physically_harmless(
            chosen,
            case.robot,
            dimension,
            token,
            choice,
            float(case.state.signed_error[row, dimension]),
        ),
    )
    assert torch.equal(verdict.emitted, case.tree.tokens if chosen.emit == "draft" else case.choice)


ZERO_TOLERANCE: dict[str, dict[str, Any]] = {
    "spec-vla": {"radius": 0},
    "corrected": {"radius": 0},
    "physical": {"translation_mm": 0.0, "rotation_mrad": 0.0, "gripper_bins": 0},
}


@few
@given(st.integers(0, 10**6), st.sampled_from(list(ZERO_TOLERANCE)))
def test_no_tolerance_is_exact(seed: int, name: str) -> None:
    case = random_case(seed)
    exact, found = case.judge(case.rule("exact")), case.judge(case.rule(name, **ZERO_TOLERANCE[name]))
    assert torch.equal(found.accepted, exact.accepted)
    assert torch.equal(found.emitted[found.accepted], exact.emitted[exact.accepted])


@few
@given(st.integers(0, 10**6), st.sampled_from(["spec-vla", "corrected"]), st.integers(0, 19))
def test_a_larger_radius_accepts_at_least_as_much(seed: int, name: str, radius: int) -> None:
    case = random_case(seed)
    smaller, larger = (case.judge(case.rule(name, radius=r)).accepted for r in (radius, radius + 1))
    assert (larger | ~smaller).all()


@few
@given(st.integers(0, 10**6), st.floats(0.0, 3.0), st.floats(0.0, 3.0))
def test_a_larger_tolerance_accepts_at_least_as_much(seed: int, millimetres: float, more: float) -> None:
    case = random_case(seed)
    smaller, larger = (
        case.judge(case.rule("physical", translation_mm=tolerance, rotation_mrad=tolerance)).accepted
        for tolerance in (millimetres, millimetres + more)
    )
    assert (larger | ~smaller).all()


@few
@given(st.integers(0, 10**6), any_rule)
def test_the_targets_own_choice_is_always_accepted(seed: int, rule: tuple[str, dict[str, Any]]) -> None:
    case = random_case(seed)
    case.tree.tokens[:] = case.choice
    verdict = case.judge(case.rule(rule[0], **rule[1]))
    assert verdict.accepted.all()
    assert torch.equal(verdict.emitted, case.choice)


@few
@given(st.integers(0, 10**6), st.sampled_from(RELAXED))
def test_the_gripper_keeps_its_side_by_default(seed: int, name: str) -> None:
    case = replace(random_case(seed), state=AcceptanceState.fresh(2))
    case.depths[:] = GRIPPER
    loose = {"physical": {"gripper_bins": 255}, "typical": {"ratio": 1e-9}}.get(name, {"radius": 255})
    verdict = case.judge(case.rule(name, **loose))
    opens = torch.arange(256) > 190  # bin 191 is the first above one half
    assert torch.equal(verdict.accepted, opens[case.tree.tokens] == opens[case.choice])
    assert (opens[verdict.emitted] == opens[case.choice])[verdict.accepted].all()


@few
@given(st.integers(0, 10**6), any_rule)
def test_sessions_do_not_see_each_other(seed: int, rule: tuple[str, dict[str, Any]]) -> None:
    case = random_case(seed, batch=3)
    judge = case.rule(rule[0], **rule[1])
    together = case.judge(judge)
    for row in range(3):
        only = slice(row, row + 1)
        tree = TokenTree(*(getattr(case.tree, name)[only] for name in TokenTree.__dataclass_fields__))
        alone = judge.accept(tree, case.logits[only], case.depths[only], case.state.row(row))
        assert torch.equal(alone.accepted[0], together.accepted[row])
        assert torch.equal(judge.forced_exact(case.state.row(row))[0], judge.forced_exact(case.state)[row])
    restacked = AcceptanceState.stack([case.state.row(row) for row in range(3)])
    assert torch.equal(restacked.signed_error, case.state.signed_error)


@pytest.mark.parametrize("name", RULES)
def test_no_rule_waits_for_the_device(name: str) -> None:
    """A tensor without contents cannot be read, so whatever reads one between two passes fails here."""
    case = random_case(0)
    tree = TokenTree(*(getattr(case.tree, field).to("meta") for field in TokenTree.__dataclass_fields__))
    rule = make_rule(name, {}, case.statistics, device="meta")
    state = AcceptanceState.fresh(2, "meta")
    verdict = rule.accept(tree, case.logits.to("meta"), case.depths.to("meta"), state)
    assert verdict.accepted.shape == verdict.emitted.shape == verdict.distance.shape == case.tree.tokens.shape
    assert rule.forced_exact(state).shape == (2, len(rule.forced_reasons))
    zeros = torch.zeros(2, 7, dtype=torch.int64, device="meta")
    state = rule.update(state, zeros, zeros, torch.zeros(2, dtype=torch.bool, device="meta"))
    assert state.signed_error.dtype == torch.float32


def test_of_equal_logits_the_highest_bin_has_the_lowest_id() -> None:
    logits = torch.zeros(256)
    logits[[40, 41, 90]] = 3.0
    assert target_choice(logits) == 90


def test_reach_tells_each_dimensions_tolerance() -> None:
    statistics = ActionStatistics(-np.ones(7), np.ones(7), np.array([True] * 6 + [False]))
    # 0.392 mm and 3.92 mrad per bin
    rule = make_rule("physical", {"translation_mm": 2.0, "rotation_mrad": 3.0, "gripper_bins": 7}, statistics)
    assert rule.reach == (5, 5, 5, 0, 0, 0, 7)
    assert make_rule("spec-vla", {"radius": 3}, statistics).reach == (3,) * 7
    assert make_rule("exact", {}, statistics).reach == (0,) * 7


@pytest.mark.parametrize(
    ("name", "options"), [("spec-vla", {"radius": 1}), ("corrected", {"radius": 1}), ("typical", {"ratio": 0.5})]
)
def test_the_gripper_is_one_more_dimension_where_its_side_is_not_protected(name: str, options: dict[str, Any]) -> None:
    case = random_case(0)
    case.depths[:] = GRIPPER
    case.tree.tokens[:] = 190
    case.logits[:] = 0.0
    case.logits[..., 191] = 0.5
    assert not case.judge(case.rule(name, **options)).accepted.any()
    assert case.judge(case.rule(name, **options, protect_gripper=False)).accepted.all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("medusa", {}, "no acceptance rule 'medusa'; choose one of exact, spec-vla"),
        ("exact", {"radius": 1}, "'exact' has no option radius; it has none"),
        ("spec-vla", {"radios": 1}, "no option radios; it has radius, protect_gripper"),
        ("spec-vla", {"radius": -1}, "radius is -1 bins"),
        ("corrected", {"radius": 256}, "radius is 256 bins; it must be 0 .* to 255"),
        ("typical", {"ratio": 0.0}, "ratio is 0.0; it must be above 0"),
        ("typical", {"ratio": 1.5}, "at most 1"),
        ("physical", {"translation_mm": -0.1}, "translation_mm is -0.1"),
        ("physical", {"rotation_mrad": float("nan")}, "rotation_mrad is nan"),
        ("physical", {"budget_mm": float("nan")}, "budget_mm is nan"),
        ("physical", {"budget_mrad": float("inf")}, "budget_mrad is inf; .* null for no limit"),
        ("physical", {"relative": float("inf")}, "relative is inf"),
        ("physical", {"floor_bins": 256}, "floor_bins is 256"),
        ("physical", {"gripper_bins": -1}, "gripper_bins is -1"),
        ("physical", {"retained": 1.1}, "retained is 1.1"),
        ("physical", {"emit": "both"}, "emit is 'both'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule_settings(name, options)
