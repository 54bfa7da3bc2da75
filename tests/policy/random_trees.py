"""Random drafts for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from policy.decoding.tree import DRAFTED_DIMENSIONS, ROOT, Draft


@st.composite
def drafts(draw: st.DrawFn, start: int | None = None, most: int = 12, tokens: int = 255) -> Draft:
    """A tree of any shape with up to `most` nodes; small `tokens` make bins repeat."""
    start = draw(st.integers(0, DRAFTED_DIMENSIONS)) if start is None else start
    parents: list[int] = []
    depths: list[int] = []
    for _ in range(draw(st.integers(0, most)) if start < DRAFTED_DIMENSIONS else 0):
        possible = [ROOT, *(node for node, depth in enumerate(depths) if depth + 1 < DRAFTED_DIMENSIONS)]
        parent = draw(st.sampled_from(possible))
        depths.append(start if parent == ROOT else depths[parent] + 1)
        parents.append(parent)
    bins = draw(st.lists(st.integers(0, tokens), min_size=len(parents), max_size=len(parents)))
    return Draft(start, tuple(bins), tuple(parents), ("random",) * len(parents))
