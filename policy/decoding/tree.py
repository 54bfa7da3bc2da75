"""Token trees: several drafted continuations of one action that share their beginnings.

Knows parents, ancestors and how trees of several sessions lie side by side. Knows nothing of who drafted the tokens,
of what makes one acceptable or of caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from policy.decoding.transfer import to_device
from policy.openvla.config import ACTION_BINS, ACTION_DIMENSIONS

# The last dimension is never drafted: once the six before it are accepted, the same pass already tells the target's own
# choice for it.
DRAFTED_DIMENSIONS = ACTION_DIMENSIONS - 1
ROOT = -1
TREE_COLUMNS = 4  # numbers that tell of a node
# Products of the matrix of parents with itself until it reaches 8 generations; a tree has at most 6.
_DOUBLINGS = 3


@dataclass(frozen=True, slots=True)
class Draft:
    """One tree of drafted action bins, on the host.

    start: action dimension of the first drafted token; the tokens before it are known.
    tokens: bin of each node, 0..255. parents: index of each node's parent, ROOT for those that follow the known tokens;
    a parent comes before its children.
    drafters: who proposed each node. depths: the action dimension of each node, which follows from the others.

    Raises ValueError for a tree that is none, or that reaches beyond the last dimension that is worth drafting.
    """

    start: int = 0
    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    drafters: tuple[str, ...] = ()
    depths: tuple[int, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.parents) == len(self.drafters):
            raise ValueError(
                f"every node needs a token, a parent and a drafter, got {len(self.tokens)}, {len(self.parents)} and "
                f"{len(self.drafters)}"
            )
        if not 0 <= self.start < ACTION_DIMENSIONS:
            raise ValueError(f"start must be an action dimension 0..{ACTION_DIMENSIONS - 1}, got {self.start}")
        depths: list[int] = []
        for node, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True)):
            if not 0 <= token < ACTION_BINS:
                raise ValueError(f"node {node} is bin {token}; bins are 0..{ACTION_BINS - 1}")
            if not ROOT <= parent < node:
                raise ValueError(f"node {node} has parent {parent}; a parent is {ROOT} (root) or an earlier node")
            depths.append(self.start if parent == ROOT else depths[parent] + 1)
        if depths and max(depths) >= DRAFTED_DIMENSIONS:
            raise ValueError(
                f"a node drafts dimension {max(depths)}; the last that a draft can help with is "
                f"{DRAFTED_DIMENSIONS - 1}"
            )
        object.__setattr__(self, "depths", tuple(depths))

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
        return cls.unpack(to_device(cls.pack(drafts, nodes), device))

    @staticmethod
    def pack(drafts: Sequence[Draft], nodes: int) -> np.ndarray:
        """Tokens, parents, depths and validity of trees, int64 `[B, 4 * nodes]` on the host. Raises as `of` does."""
        largest = max((len(draft.tokens) for draft in drafts), default=0)
        if largest > nodes:
            raise ValueError(f"a draft has {largest} nodes, the tree has room for {nodes}")
        packed = np.zeros((len(drafts), TREE_COLUMNS, nodes), np.int64)
        packed[:, 1] = ROOT
        for row, draft in zip(packed, drafts, strict=True):
            count = len(draft.tokens)
            if count:
                row[:3, :count] = draft.tokens, draft.parents, draft.depths
                row[3, :count] = True
        return packed.reshape(len(drafts), TREE_COLUMNS * nodes)

    @classmethod
    def unpack(cls, packed: Tensor) -> TokenTree:
        """The trees of `pack`, on whatever device it was brought to; without waiting for it."""
        batch, columns = packed.shape
        tokens, parents, depths, valid = packed.reshape(batch, TREE_COLUMNS, columns // TREE_COLUMNS).unbind(dim=1)
        return cls(tokens, parents, depths, valid.bool(), _ancestors(parents))

    @property
    def nodes(self) -> int:
        """N, padding included."""
        return self.tokens.shape[1]


def _ancestors(parents: Tensor) -> Tensor:
    """Bool `[B, N, N]` for parents int64 `[B, N]`."""
    nodes = torch.arange(parents.shape[1], device=parents.device)
    near = ((parents[:, :, None] == nodes) | (nodes[:, None] == nodes)).float()  # the node itself and its parent
    for _ in range(_DOUBLINGS):  # counts of ways up are small whole numbers, so exact in any precision
        near = near @ near
    return near > 0
