"""From the target's logits over a tree to what is accepted of it, on the model's device.

Knows which tokens are action tokens, and picks the path. Knows nothing of how logits came about, or of what a rule
tolerates.

Of several drafts that a rule lets stand at one position, which is followed matters as much as the rule. The longest
accepted path of the tree is the published choice. But what the target says at a node it says after the drafts above
it, so looking for the longest path is looking for the beginning, of all those within tolerance, that makes a draft come
true: a previous action that says "stand still" is confirmed again and again, by way of a first coordinate a few bins
off, while the target would go on. See `docs/acceptance.md` for what that costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from policy.decoding.acceptance.base import AcceptanceRule, AcceptanceState, target_choice
from policy.decoding.tree import ROOT, TokenTree
from policy.openvla.config import ACTION_BINS

# "nearest": from the root on, the accepted draft that is nearest to the target's choice is followed. "longest": of all
# paths of accepted drafts the longest.
PathChoice = Literal["nearest", "longest"]


@dataclass(frozen=True, slots=True)
class Verification:
    """What came of one pass, on the host.

    last: int64 `[B]`, the last node of the accepted path, ROOT where nothing was accepted.
    still: int64 `[B]`, whether the picture is that of the action before.
    choices: int64 `[B, 1 + N]`, the target's own next token id after the known tokens and after each node.
    drafted_choices: int64 `[B, 1 + N]`, the same as bins, the best of the action bins where the choice is none.
    emitted: int64 `[B, N]`, the bin that the rule emits for each node.
    forced: int64 `[B, reasons]`, why the rule decodes exactly, see `AcceptanceRule.forced_exact`.
    """

    last: np.ndarray
    still: np.ndarray
    choices: np.ndarray
    drafted_choices: np.ndarray
    emitted: np.ndarray
    forced: np.ndarray

    @classmethod
    def unpack(cls, packed: np.ndarray, nodes: int) -> Verification:
        """From what `judge` gives for a tree of so many nodes."""
        drafted, emitted = 3 + nodes, 4 + 2 * nodes  # where these begin
        forced = emitted + nodes
        columns = packed[:, 2:drafted], packed[:, drafted:emitted], packed[:, emitted:forced], packed[:, forced:]
        return cls(packed[:, 0], packed[:, 1], *columns)


def judged_columns(nodes: int, rule: AcceptanceRule) -> int:
    """How many numbers `judge` gives for each session."""
    return 4 + 3 * nodes + len(rule.forced_reasons)


def judge(
    rule: AcceptanceRule,
    action_vocabulary: int,
    tree: TokenTree,
    logits: Tensor,
    state: AcceptanceState,
    still: Tensor,
    path: PathChoice = "nearest",
) -> Tensor:
    """Judge a tree by the target's float32 logits `[B, 1 + N, vocabulary]`, after the root and after each node.

    Where the target's own choice among *all* ids is no action token, nothing is accepted: plain decoding would emit
    that id, so it is left to the target. still: int64 `[B]`, for the host to know.
    Returns what a verification holds, side by side for one copy to the host: int64 `[B, judged columns]`.
    """
    choices = logits.argmax(dim=-1)  # [B, 1 + N]
    first = action_vocabulary - ACTION_BINS
    of_bins = logits[:, :, first:action_vocabulary].flip(-1)  # ids count down, bins up
    parents = tree.parents - ROOT  # the root is the first row
    of_parents = of_bins.gather(1, parents[:, :, None].expand(-1, -1, ACTION_BINS))
    verdict = rule.accept(tree, of_parents, tree.depths, state)
    is_action = (choices >= first) & (choices < action_vocabulary)
    stands = verdict.accepted & is_action.gather(1, parents) & tree.valid
    if path == "nearest":
        stands = nearest_children(tree, stands, verdict.distance)
    last = longest_path(tree, stands, verdict.distance)
    ends = torch.stack([last, still], dim=1)
    forced = rule.forced_exact(state).long()
    return torch.cat([ends, choices, target_choice(of_bins), verdict.emitted, forced], dim=1)


def nearest_children(tree: TokenTree, stands: Tensor, distance: Tensor) -> Tensor:
    """Of the nodes that stand, bool `[B, N]`, only the nearest to the target's choice under each parent, and of equally
    near ones the first: at most one path is left.
    """
    nodes = tree.nodes
    # Unequal numbers in which a bin of distance outweighs any place in the tree.
    rank = torch.where(stands, distance, ACTION_BINS) * nodes + torch.arange(nodes, device=distance.device)
    siblings = tree.parents[:, :, None] == tree.parents[:, None, :]
    return stands & ~(siblings & (rank[:, None, :] < rank[:, :, None])).any(dim=-1)


def longest_path(tree: TokenTree, stands: Tensor, distance: Tensor) -> Tensor:
    """The last node of the longest path from the root of which every node stands, int64 `[B]`, or ROOT.

    Among equally long ones that with the smallest sum of distances; among those the first. stands: bool `[B, N]`.
    distance: int64 `[B, N]`, from the target's choice.
    """
    reached = ~(tree.ancestors & ~stands[:, None, :]).any(dim=-1)  # [B, N]: the node and all its ancestors stand
    length = tree.ancestors.sum(dim=-1)
    summed = (tree.ancestors * distance[:, None, :]).sum(dim=-1)
    # A path has at most 6 nodes of distance 255, so a token more always outweighs any distance.
    score = torch.where(reached, length * 8 * ACTION_BINS - summed, 0)
    nothing = score.new_zeros(len(score), 1)
    return torch.cat([nothing, score], dim=1).argmax(dim=1) + ROOT
