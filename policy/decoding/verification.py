"""From the target's logits over a tree to what is accepted of it, on the model's device.

Knows which tokens are action tokens, and picks the path. Knows nothing of how logits came about, or of what a rule
tolerates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from policy.decoding.acceptance.base import AcceptanceRule, AcceptanceState, Verdict, target_choice
from policy.decoding.capture import Record, captured
from policy.decoding.tree import ROOT, TokenTree
from policy.openvla.config import ACTION_BINS


@dataclass(frozen=True, slots=True)
class Verification:
    """What came of one pass, on the host.

    last: int64 `[B]`, the last node of the accepted path, ROOT where nothing was accepted.
    choices: int64 `[B, 1 + N]`, the target's own next token id after the known tokens and after each node.
    drafted_choices: int64 `[B, 1 + N]`, the same as bins, the best of the action bins where the choice is none.
    emitted: int64 `[B, N]`, the bin that the rule emits for each node.
    """

    last: np.ndarray
    choices: np.ndarray
    drafted_choices: np.ndarray
    emitted: np.ndarray


class Verifier:
    """Judges trees by a rule.

    record: how judging is recorded to be one launch instead of some forty; it runs launch by launch unless given.
    """

    def __init__(self, rule: AcceptanceRule, action_vocabulary: int, record: Record | None = None) -> None:
        self._rule = rule
        self._end = action_vocabulary
        self._judged = captured(self._judge, record)

    def __call__(self, tree: TokenTree, logits: Tensor, state: AcceptanceState) -> Verification:
        """Judge a tree by the target's float32 logits `[B, 1 + N, vocabulary]`, after the root and after each node.

        Where the target's own choice among *all* ids is no action token, nothing is accepted: plain decoding would emit
        that id, so it is left to the target.
        """
        remembered = (state.signed_error, state.previous, state.repeats)
        laid = (tree.tokens, tree.parents, tree.depths, tree.valid, tree.ancestors)
        # One copy for all, since each waits for the device.
        packed = self._judged((logits, *laid, *remembered)).cpu().numpy()
        last, choices, best_bins, emitted = np.split(packed, np.cumsum([1, *[1 + tree.nodes] * 2]), axis=1)
        return Verification(last[:, 0], choices, best_bins, emitted)

    def _judge(self, logits: Tensor, *tensors: Tensor) -> Tensor:
        """What a verification holds, side by side: int64 `[B, 3 + 3 * N]`."""
        tree, state = TokenTree(*tensors[:5]), AcceptanceState(*tensors[5:])
        choices = logits.argmax(dim=-1)  # [B, 1 + N]
        of_bins = logits[:, :, self._end - ACTION_BINS : self._end].flip(-1)  # ids count down, bins up
        parents = tree.parents - ROOT  # the root is the first row
        of_parents = of_bins.gather(1, parents[:, :, None].expand(-1, -1, ACTION_BINS))
        verdict = self._rule.accept(tree, of_parents, tree.depths, state)
        is_action = (choices >= self._end - ACTION_BINS) & (choices < self._end)
        last = longest_path(tree, verdict, is_action.gather(1, parents))
        return torch.cat([last[:, None], choices, target_choice(of_bins), verdict.emitted], dim=1)


def longest_path(tree: TokenTree, verdict: Verdict, allowed: Tensor) -> Tensor:
    """The last node of the longest path from the root of which every node is accepted, int64 `[B]`, or ROOT.

    Among equally long ones that with the smallest sum of distances; among those the first. allowed: bool `[B, N]`,
    nodes that may be accepted at all.
    """
    stands = verdict.accepted & allowed & tree.valid
    reached = ~(tree.ancestors & ~stands[:, None, :]).any(dim=-1)  # [B, N]: the node and all its ancestors stand
    length = tree.ancestors.sum(dim=-1)
    distance = (tree.ancestors * verdict.distance[:, None, :]).sum(dim=-1)
    # A path has at most 6 nodes of distance 255, so a token more always outweighs any distance.
    score = torch.where(reached, length * 8 * ACTION_BINS - distance, 0)
    nothing = score.new_zeros(len(score), 1)
    return torch.cat([nothing, score], dim=1).argmax(dim=1) + ROOT
