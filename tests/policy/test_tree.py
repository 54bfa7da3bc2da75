"""Trees are what they say: parents before children, ancestors complete, sessions side by side."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_trees import drafts

from policy.decoding.tree import ROOT, Draft, TokenTree


def ancestors(draft: Draft, node: int) -> set[int]:
    found = set()
    while node != ROOT:
        found.add(node)
        node = draft.parents[node]
    return found


@settings(max_examples=50, deadline=None)
@given(st.lists(drafts(), min_size=1, max_size=3))
def test_masks_hold_exactly_the_ancestors(batch: list[Draft]) -> None:
    tree = TokenTree.of(batch, nodes=12)
    for row, draft in enumerate(batch):
        count = len(draft.tokens)
        assert tree.valid[row].tolist() == [True] * count + [False] * (12 - count)
        for node in range(12):
            expected = ancestors(draft, node) if node < count else {node}
            assert set(tree.ancestors[row, node].nonzero()[:, 0].tolist()) == expected
        for node in range(count):
            assert tree.depths[row, node] == draft.start + len(ancestors(draft, node)) - 1
            assert tree.parents[row, node] == draft.parents[node]


def test_chain_is_one_branch() -> None:
    draft = Draft.chain(2, [7, 8, 9], "motion")
    assert (draft.parents, draft.depths, draft.drafters) == ((ROOT, 0, 1), (2, 3, 4), ("motion",) * 3)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"tokens": (256,), "parents": (-1,), "drafters": ("a",)}, "node 0 is bin 256"),
        ({"tokens": (1, 2), "parents": (-1, 1), "drafters": ("a", "a")}, "node 1 has parent 1"),
        ({"tokens": (1,), "parents": (-1,), "drafters": ()}, "got 1, 1 and 0"),
        ({"start": 7}, "start must be an action dimension 0..6, got 7"),
        ({"start": 5, "tokens": (1, 2), "parents": (-1, 0), "drafters": ("a", "a")}, "dimension 6"),
    ],
)
def test_what_is_no_tree_is_refused(arguments: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Draft(**arguments)


def test_a_tree_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="3 nodes, the tree has room for 2"):
        TokenTree.of([Draft.chain(0, [1, 2, 3], "a")], nodes=2)
