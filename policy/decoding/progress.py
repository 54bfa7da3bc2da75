"""One action while it is being decoded: the tokens so far, what to guess for the rest, and how it all came about.

Plain Python on the host, one object for one session. Knows how a verified tree becomes tokens; knows no tensors.
"""

from __future__ import annotations

import numpy as np

from policy.decoding.tree import ROOT, Draft
from policy.openvla.config import ACTION_BINS, ACTION_DIMENSIONS
from policy.types import DecodeTrace

UNKNOWN = -1


class ActionProgress:
    """ids: token ids emitted so far. bins: the same as bins. choices: the bins that the target itself chose there.
    guess: int64 `[7]`, the target's choices for later dimensions as far as drafts that were refused have told them,
    UNKNOWN elsewhere. rows: of the last pass, the rows of its logits that chose the tokens it gained.
    """

    def __init__(self, action_vocabulary: int) -> None:
        self.ids: list[int] = []
        self.bins: list[int] = []
        self.choices: list[int] = []
        self.guess = np.full(ACTION_DIMENSIONS, UNKNOWN, np.int64)
        self.rows: tuple[int, ...] = ()
        self._action_vocabulary = action_vocabulary
        self._sources: list[str] = []
        self._accepted: list[int] = []
        self._drafters: list[str] = []

    @classmethod
    def nobodys(cls, action_vocabulary: int) -> ActionProgress:
        """Of a row that only fills a batch up: done from the beginning."""
        progress = cls(action_vocabulary)
        for _ in range(ACTION_DIMENSIONS):
            progress._append(0, 0, "")
        return progress

    @property
    def done(self) -> bool:
        return len(self.ids) == ACTION_DIMENSIONS

    def take(
        self, draft: Draft, last: int, choices: np.ndarray, drafted_choices: np.ndarray, emitted: np.ndarray
    ) -> None:
        """Take one pass's outcome: the accepted path that ends at node `last`, and the target's own token after it.

        The arrays are one session's rows of a `Verification`. At least one token is gained, so an action never needs
        more than 7 passes.
        """
        path = _path_to(draft, last)
        self.rows = (0, *(1 + node for node in path))  # the root's row is the first
        for node in path:
            self._append(int(emitted[node]), int(drafted_choices[1 + draft.parents[node]]), draft.drafters[node])
        choice = int(choices[1 + last])
        nearest_bin = min(max(self._action_vocabulary - 1 - choice, 0), ACTION_BINS - 1)
        self._append(nearest_bin, nearest_bin, "")
        self.ids[-1] = choice  # may be no action token at all; plain decoding emits it just so
        self._accepted.append(len(path) + 1)
        self._drafters.append("+".join(dict.fromkeys(draft.drafters[node] for node in path)))
        if not self.done:
            self._guess_on(draft, last, drafted_choices)

    def trace(self, forced: tuple[str, ...]) -> DecodeTrace:
        """The finished action's. forced: why it was decoded exactly, if it was."""
        return DecodeTrace(
            target_passes=len(self._accepted),
            accepted_per_pass=tuple(self._accepted),
            drafters=tuple(self._drafters),
            deviation_bins=tuple(bin_ - choice for bin_, choice in zip(self.bins, self.choices, strict=True)),
            sources=tuple(self._sources),
            forced=forced,
        )

    def _append(self, bin_: int, choice: int, source: str) -> None:
        self.ids.append(self._action_vocabulary - 1 - bin_)
        self.bins.append(bin_)
        self.choices.append(choice)
        self._sources.append(source)

    def _guess_on(self, draft: Draft, last: int, drafted_choices: np.ndarray) -> None:
        """Follow the refused branch that lies nearest to the target's choices, and keep what the target said along it.

        These are the argmaxes of a Jacobi iteration (Santilli et al. 2023): chosen after a slightly wrong beginning.
        """
        node, token, dimension = last, self.bins[-1], len(self.bins) - 1
        while children := [child for child, parent in enumerate(draft.parents) if parent == node]:
            node = min(children, key=lambda child: abs(draft.tokens[child] - token))
            token = int(drafted_choices[1 + node])
            dimension += 1
            self.guess[dimension] = token


def _path_to(draft: Draft, last: int) -> list[int]:
    """The nodes from the root's child down to `last`; none for ROOT."""
    path: list[int] = []
    while last != ROOT:
        path.append(last)
        last = draft.parents[last]
    return path[::-1]
