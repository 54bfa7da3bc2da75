"""Which path is taken: against trying all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_trees import drafts

from policy.decoding.acceptance import make_rule
from policy.decoding.acceptance.base import AcceptanceState
from policy.decoding.acceptance.exact import Exact
from policy.decoding.tree import ROOT, Draft, TokenTree
from policy.decoding.verification import PathChoice, Verification, judge, longest_path, nearest_children
from policy.openvla.action_tokens import ActionStatistics

VOCABULARY, ACTION_VOCABULARY = 300, 290


def best_by_trying(draft: Draft, accepted: list[bool], distance: list[int]) -> tuple[int, int]:
    """Length and summed distance of the best path."""
    best = (0, 0)
    for node in range(len(draft.tokens)):
        path = []
        while node != ROOT:
            path.append(node)
            node = draft.parents[node]
        if all(accepted[step] for step in path):
            best = max(best, (len(path), -sum(distance[step] for step in path)))
    return best


def nearest_by_walking(draft: Draft, stands: list[bool], distance: list[int]) -> int:
    """The node where a walk from the root ends that goes on to the nearest child that stands, the first of equals."""
    last = ROOT
    while children := [node for node, parent in enumerate(draft.parents) if parent == last and stands[node]]:
        last = min(children, key=lambda node: distance[node])
    return last


def judged_at_random(data: st.DataObject) -> tuple[list[Draft], TokenTree, np.ndarray, np.ndarray]:
    """Trees, and for each of their nodes whether it stands and how far it is from the target's choice."""
    batch = data.draw(st.lists(drafts(), min_size=1, max_size=3))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = (len(batch), 12)
    tree = TokenTree.of(batch, nodes=12)
    return batch, tree, (random.random(shape) < 0.7) & tree.valid.numpy(), random.integers(0, 4, shape)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_longest_path_and_then_the_closest(data: st.DataObject) -> None:
    batch, tree, stands, distance = judged_at_random(data)
    last = longest_path(tree, torch.from_numpy(stands), torch.from_numpy(distance))
    for row, draft in enumerate(batch):
        length = summed = 0
        node = int(last[row])
        while node != ROOT:
            assert stands[row, node]
            length, summed, node = length + 1, summed + int(distance[row, node]), draft.parents[node]
        assert (length, -summed) == best_by_trying(draft, stands[row].tolist(), distance[row].tolist())


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_nearest_draft_at_every_step(data: st.DataObject) -> None:
    batch, tree, stands, distance = judged_at_random(data)
    rows = torch.from_numpy(stands), torch.from_numpy(distance)
    last = longest_path(tree, nearest_children(tree, *rows), rows[1])
    assert last.tolist() == [
        nearest_by_walking(draft, stands[row].tolist(), distance[row].tolist()) for row, draft in enumerate(batch)
    ]


@pytest.mark.parametrize(("path", "executed"), [("nearest", [127, 200]), ("longest", [127, 126])])
def test_a_wrong_beginning_is_not_sought_to_confirm_a_draft(path: PathChoice, executed: list[int]) -> None:
    """As seen in LIBERO: after x = 127 the target lifts, after x = 124 it would go on standing still."""
    statistics = ActionStatistics(-np.ones(7), np.ones(7), np.array([True] * 6 + [False]))
    rule = make_rule("corrected", {"radius": 5}, statistics)
    tree = TokenTree.of([Draft(0, (127, 126, 124, 126), (ROOT, 0, ROOT, 2), ("motion",) * 4)], nodes=4)
    logits = torch.zeros(1, 5, ACTION_VOCABULARY)
    for row, choice in enumerate((127, 200, 0, 126, 0)):  # after the root and after each node
        logits[0, row, ACTION_VOCABULARY - 1 - choice] = 1.0
    told = judge(rule, ACTION_VOCABULARY, tree, logits, AcceptanceState.fresh(1), torch.tensor([0]), path)
    found = Verification.unpack(told.numpy(), tree.nodes)
    last = int(found.last[0])
    if path == "nearest":
        assert (last, found.drafted_choices[0, 1 + last]) == (0, executed[1])
    else:
        assert last == 3
        assert found.emitted[0, [2, 3]].tolist() == executed


def judged(tree: TokenTree, logits: torch.Tensor) -> Verification:
    still = torch.tensor([0])
    packed = judge(Exact(), ACTION_VOCABULARY, tree, logits, AcceptanceState.fresh(1), still)
    return Verification.unpack(packed.numpy(), tree.nodes)


def test_nothing_is_accepted_where_the_target_would_leave_the_action_tokens() -> None:
    tree = TokenTree.of([Draft.chain(0, [10, 20], "a")], nodes=2)
    logits = torch.zeros(1, 3, VOCABULARY)
    logits[0, 0, ACTION_VOCABULARY - 1 - 10] = 5.0
    logits[0, 1, ACTION_VOCABULARY - 1 - 20] = 5.0
    found = judged(tree, logits)
    assert found.last.tolist() == [1]
    logits[0, 1, 2] = 6.0  # an id outside of the action range is the largest of all
    found = judged(tree, logits)
    assert found.last.tolist() == [0]
    assert found.choices[0, 1] == 2
    assert found.drafted_choices[0, 1] == 20


def test_of_equal_logits_the_lowest_id_is_chosen_everywhere() -> None:
    tree = TokenTree.of([Draft.chain(0, [77], "a")], nodes=1)
    found = judged(tree, torch.ones(1, 2, ACTION_VOCABULARY))
    assert found.choices.tolist() == [[0, 0]]  # no action id, so nothing can be accepted
    logits = torch.zeros(1, 2, ACTION_VOCABULARY)
    logits[:, :, 100:103] = 1.0
    found = judged(tree, logits)
    assert found.choices.tolist() == [[100, 100]]
    assert found.drafted_choices.tolist() == [[ACTION_VOCABULARY - 1 - 100] * 2]
