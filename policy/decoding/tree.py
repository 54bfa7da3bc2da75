"""Token trees: several drafted continuations of one action that share their beginnings.

Knows parents, ancestors and how trees of several sessions lie side by side. Knows nothing of who drafted the tokens,
of what makes one acceptable or of caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from policy.openvla.config import ACTION_BINS, ACTION_DIMENSIONS

# The last dimension is never drafted: once the six before it are accepted, the same pass already tells the target's own
# choice for it.
DRAFTED_DIMENSIONS = ACTION_DIMENSIONS - 1
ROOT = -1


@dataclass(frozen=True, slots=True)
class Draft:
    """One tree of drafted action bins, on the host.

    start: action dimension of the first drafted token; the tokens before it are known.
    tokens: bin of each node, 0..255. parents: index of each node's parent, ROOT for those that follow the known tokens;
    a parent comes before its children.
    drafters: who proposed each node.

    Raises ValueError for a tree that is none, or that reaches beyond the last dimension that is worth drafting.
    """

    start: int = 0
    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    drafters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.parents) == len(self.drafters):
            raise ValueError(
                f"every node needs a token, a parent and a drafter, got {len(self.tokens)}, {len(self.parents)} and "
                f"{len(self.drafters)}"
            )
        if not 0 <= self.start < ACTION_DIMENSIONS:
            raise ValueError(f"start must be an action dimension 0..{ACTION_DIMENSIONS - 1}, got {self.start}")
        for node, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True)):
            if not 0 <= token < ACTION_BINS:
                raise ValueError(f"node {node} is bin {token}; bins are 0..{ACTION_BINS - 1}")
            if not ROOT <= parent < node:
                raise ValueError(f"node {node} has parent {parent}; a parent is {ROOT} (root) or an earlier node")
        if self.tokens and max(self.depths) >= DRAFTED_DIMENSIONS:
            raise ValueError(
                f"a node drafts dimension {max(self.depths)}; the last that a draft can help with is "
                f"{DRAFTED_DIMENSIONS - 1}"
            )

    @property
    def depths(self) -> tuple[int, ...]:
        """The action dimension of each node."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(self.start if parent == ROOT else depths[parent] + 1)
        return tuple(depths)

    @classmethod
    def chain(cls, start: int, tokens: Sequence[int], drafter: str) -> Draft:
        """One continuation without branches."""
        return cls(start, tuple(tokens), tuple(range(ROOT, len(tokens) - 1)), (drafter,) * len(tokens))


@dataclass(frozen=True, slots=True)
class TokenTree:
    """The trees of B sessions, padded to N nodes each.

    tokens: int64 `[B, N]`, action bins. parents: int64 `[B, N]`, ROOT where a node follows the known tokens.
    depths: int64 `[B, N]`, the node's action dimension. valid: bool `[B, N]`, False for padding.
    ancestors: bool `[B, N, N]`, whether node i is below node j or is j itself. Padding is its own ancestor only.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    valid: Tensor
    ancestors: Tensor

    @classmethod
    def of(cls, drafts: Sequence[Draft], nodes: int, device: torch.device | str = "cpu") -> TokenTree:
        """Lay trees side by side, each padded to `nodes`. Raises ValueError for a tree that has more."""
        largest = max((len(draft.tokens) for draft in drafts), default=0)
        if largest > nodes:
            raise ValueError(f"a draft has {largest} nodes, the tree has room for {nodes}")
        shape = (len(drafts), nodes)
        tokens, depths = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        parents, valid = np.full(shape, ROOT, np.int64), np.zeros(shape, bool)
        ancestors = np.broadcast_to(np.eye(nodes, dtype=bool), (*shape, nodes)).copy()
        for row, draft in enumerate(drafts):
            count = len(draft.tokens)
            tokens[row, :count], parents[row, :count], depths[row, :count] = draft.tokens, draft.parents, draft.depths
            valid[row, :count] = True
            for node, parent in enumerate(draft.parents):
                if parent != ROOT:
                    ancestors[row, node] |= ancestors[row, parent]
        flat = np.concatenate([np.stack([tokens, parents, depths, valid], axis=2), ancestors], axis=2)
        moved = torch.from_numpy(flat).to(device)  # one copy for all, [B, N, 4 + N]
        tokens_there, parents_there, depths_there, valid_there = moved[:, :, :4].unbind(dim=2)
        return cls(tokens_there, parents_there, depths_there, valid_there.bool(), moved[:, :, 4:].bool())

    @property
    def nodes(self) -> int:
        """N, padding included."""
        return self.tokens.shape[1]
