"""The target's forward passes of one action: the prompt with drafts behind it, then whatever is still open.

Knows slots, positions and masks: which token is where in the cache and what it may see. Knows nothing of who drafted
the tokens or which of them are accepted.

The cache holds, for every session, its prompt (slots 0..L-1, padded on the right), the tokens that are decided (the
next six slots) and the nodes of a tree (behind them). Decided tokens are fed again with every pass instead of moving
the accepted nodes' keys and values to their place: six rows more cost nothing beside reading the weights, shapes stay
the same, and what follows is conditioned on the tokens that the robot will execute also where an acceptance rule
emitted others than were drafted.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from policy.decoding.cache import CachePool
from policy.decoding.prompt_batch import PromptBatch
from policy.decoding.tree import DRAFTED_DIMENSIONS, TokenTree
from policy.openvla.language_model import taken
from policy.openvla.model import OpenVLA


class TargetPasses:
    """Passes over the same prompts, first `prefill` and then any number of `extend`.

    nodes: the largest number of nodes of any tree to come. caches: lends the cache for the time of this action.
    keeps_prompt: whether the prompts' hidden states are needed, which the last layer need not work out otherwise.

    hidden: `[B, 1 + N, width]`, after each pass the hidden states that its logits come from.
    prompt_hidden: `[B, S, width]`, the prompts' hidden states, padding included; there after `prefill`, if kept.
    """

    hidden: Tensor
    prompt_hidden: Tensor

    def __init__(
        self, model: OpenVLA, prompts: PromptBatch, nodes: int, caches: CachePool, *, keeps_prompt: bool = False
    ) -> None:
        self._model = model
        self._prompts, self._keeps_prompt = prompts, keeps_prompt
        self._batch, self._longest, _ = prompts.embeddings.shape
        self._cache = caches.get(self._batch, self._longest + DRAFTED_DIMENSIONS + nodes)
        self._order = self._cache.slots  # 0, 1, 2 and so on; slices of it spare launches
        self._prompt_visible = self._order[: self._longest] < prompts.lengths[:, None]  # [B, S]

    def prefill(self, tree: TokenTree) -> Tensor:
        """Read the prompts and the trees of complete actions behind them.

        Returns float32 logits `[B, 1 + N, vocabulary]`: after the prompt, then after each node.
        """
        longest, lengths = self._longest, self._prompts.lengths
        order = self._order[:longest].expand(self._batch, -1)
        first_node = longest + DRAFTED_DIMENSIONS
        slots = torch.cat([self._order[:longest], self._order[first_node : first_node + tree.nodes]])
        nodes_see = self._rows_see(tree.nodes, functional.pad(tree.ancestors, (DRAFTED_DIMENSIONS, self._room(tree))))
        wanted = self._wanted(lengths - 1, longest + tree.nodes, tree.nodes)
        hidden = self._model.language_model(
            torch.cat([self._prompts.embeddings, self._embed(self._ids(tree))], dim=1),
            torch.cat([order, lengths[:, None] + tree.depths], dim=1),
            self._cache,
            slots=slots.expand(self._batch, -1),
            mask=torch.cat([self._cache.causal_mask(order), nodes_see[:, None]], dim=2),
            wanted=None if self._keeps_prompt else wanted,
        )
        if self._keeps_prompt:
            self.prompt_hidden, hidden = hidden[:, :longest], taken(hidden, wanted)
        return self._logits(hidden)

    def extend(self, decided: Tensor, counts: Tensor, tree: TokenTree) -> Tensor:
        """Read the tokens that are decided, and trees that continue them.

        decided: token ids int64 `[B, 6]`, of which the first `counts` (int64 `[B]`, at least 1) count.
        Returns float32 logits `[B, 1 + N, vocabulary]`: after the last decided token, then after each node.
        """
        order = self._order[:DRAFTED_DIMENSIONS].expand(self._batch, -1)
        rows = DRAFTED_DIMENSIONS + tree.nodes
        # A decided token sees those up to itself, a node those that count; neither sees the padding of the prompt.
        seen = torch.cat([order + 1, counts[:, None].expand(-1, tree.nodes)], dim=1)  # [B, rows]
        among_decided = self._order[:DRAFTED_DIMENSIONS] < seen[:, :, None]
        among_nodes = functional.pad(tree.ancestors, (0, self._room(tree), DRAFTED_DIMENSIONS, 0))
        hidden = self._model.language_model(
            self._embed(torch.cat([decided, self._ids(tree)], dim=1)),
            self._prompts.lengths[:, None] + torch.cat([order, tree.depths], dim=1),
            self._cache,
            slots=self._order[self._longest : self._longest + rows].expand(self._batch, -1),
            mask=self._rows_see(rows, among_decided, among_nodes)[:, None],
            wanted=self._wanted((counts - 1).clamp(max=DRAFTED_DIMENSIONS - 1), rows, tree.nodes),
        )
        return self._logits(hidden)

    def _ids(self, tree: TokenTree) -> Tensor:
        return self._model.config.action_vocabulary - 1 - tree.tokens

    def _embed(self, ids: Tensor) -> Tensor:
        return self._model.language_model.model.embed_tokens(ids)

    def _room(self, tree: TokenTree) -> int:
        """Slots behind the tree's that larger ones may fill."""
        return self._cache.length - self._longest - DRAFTED_DIMENSIONS - tree.nodes

    def _rows_see(self, rows: int, *behind: Tensor) -> Tensor:
        """Bool `[B, rows, length]`: the prompt, and of the slots behind it what is given, `[B, rows, some]` each."""
        return torch.cat([self._prompt_visible[:, None].expand(-1, rows, -1), *behind], dim=2)

    def _wanted(self, root: Tensor, rows: int, nodes: int) -> Tensor:
        """Of a pass of so many rows those that tell something new, int64 `[B, 1 + N]`: the root's and the last N."""
        return torch.cat([root[:, None], self._order[rows - nodes : rows].expand(self._batch, -1)], dim=1)

    def _logits(self, hidden: Tensor) -> Tensor:
        self.hidden = hidden
        return self._model.logits(hidden)
