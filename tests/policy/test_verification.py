"""Which path is taken: against trying all of them."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_trees import drafts

from policy.decoding.acceptance.base import AcceptanceState, Verdict
from policy.decoding.acceptance.exact import Exact
from policy.decoding.tree import ROOT, Draft, TokenTree
from policy.decoding.verification import Verification, judge, longest_path

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


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_longest_path_and_then_the_closest(data: st.DataObject) -> None:
    batch = data.draw(st.lists(drafts(), min_size=1, max_size=3))
    tree = TokenTree.of(batch, nodes=12)
    shape = (len(batch), 12)
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    accepted, allowed = random.random(shape) < 0.7, random.random(shape) < 0.9
    distance = random.integers(0, 4, shape)
    verdict = Verdict(torch.from_numpy(accepted), tree.tokens, torch.from_numpy(distance))
    last = longest_path(tree, verdict, torch.from_numpy(allowed))
    for row, draft in enumerate(batch):
        stands = (accepted[row] & allowed[row]).tolist()
        length = summed = 0
        node = int(last[row])
        while node != ROOT:
            assert stands[node]
            length, summed, node = length + 1, summed + int(distance[row, node]), draft.parents[node]
        assert (length, -summed) == best_by_trying(draft, stands, distance[row].tolist())


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
