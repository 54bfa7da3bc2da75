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

from policy.decoding.cache import CachePool
from policy.decoding.prompt_batch import PromptBatch
from policy.decoding.tree import DRAFTED_DIMENSIONS, TokenTree
from policy.openvla.model import OpenVLA


class TargetPasses:
    """Passes over the same prompts, first `prefill` and then any number of `extend`.

    nodes: the largest number of nodes of any tree to come. caches: lends the cache for the time of this action.

    hidden: `[B, 1 + N, width]`, after each pass the hidden states that its logits come from.
    prompt_hidden: `[B, S, width]`, the prompts' hidden states, padding included; there after `prefill`.
    """

    hidden: Tensor
    prompt_hidden: Tensor

    def __init__(self, model: OpenVLA, prompts: PromptBatch, nodes: int, caches: CachePool) -> None:
        self._model = model
        self._prompts = prompts
        batch, self._longest, _ = prompts.embeddings.shape
        length = self._longest + DRAFTED_DIMENSIONS + nodes
        self._cache = caches.get(batch, length)
        slots = torch.arange(length, device=model.device)
        self._decided_slots = slots[self._longest : self._longest + DRAFTED_DIMENSIONS]
        self._node_slots = slots[self._longest + DRAFTED_DIMENSIONS :]
        self._prompt_visible = slots < prompts.lengths[:, None]  # [B, length]

    def prefill(self, tree: TokenTree) -> Tensor:
        """Read the prompts and the trees of complete actions behind them.

        Returns float32 logits `[B, 1 + N, vocabulary]`: after the prompt, then after each node.
        """
        batch, longest = len(self._prompts.lengths), self._longest
        order = torch.arange(longest, device=self._model.device).expand(batch, -1)
        nothing = torch.zeros_like(self._prompts.lengths)
        hidden = self._model.language_model(
            torch.cat([self._prompts.embeddings, self._embed_nodes(tree)], dim=1),
            torch.cat([order, self._node_positions(tree)], dim=1),
            self._cache,
            slots=torch.cat([order, self._node_slots[: tree.nodes].expand(batch, -1)], dim=1),
            mask=torch.cat([self._cache.causal_mask(order), self._node_mask(tree, nothing)], dim=2),
        )
        self.prompt_hidden = hidden[:, :longest]
        return self._logits(hidden, self._prompts.lengths - 1, tree.nodes)

    def extend(self, decided: Tensor, counts: Tensor, tree: TokenTree) -> Tensor:
        """Read the tokens that are decided, and trees that continue them.

        decided: token ids int64 `[B, 6]`, of which the first `counts` (int64 `[B]`, at least 1) count.
        Returns float32 logits `[B, 1 + N, vocabulary]`: after the last decided token, then after each node.
        """
        batch = len(counts)
        slots = self._decided_slots.expand(batch, -1)
        order = torch.arange(DRAFTED_DIMENSIONS, device=self._model.device)
        # Decided tokens see the prompt and each other, but not the padding between.
        mask = self._cache.causal_mask(slots) & (self._prompt_visible | self._is_decided_slot())[:, None, None, :]
        hidden = self._model.language_model(
            torch.cat([self._model.language_model.model.embed_tokens(decided), self._embed_nodes(tree)], dim=1),
            torch.cat([self._prompts.lengths[:, None] + order, self._node_positions(tree)], dim=1),
            self._cache,
            slots=torch.cat([slots, self._node_slots[: tree.nodes].expand(batch, -1)], dim=1),
            mask=torch.cat([mask, self._node_mask(tree, counts)], dim=2),
        )
        return self._logits(hidden, (counts - 1).clamp(max=DRAFTED_DIMENSIONS - 1), tree.nodes)

    def _embed_nodes(self, tree: TokenTree) -> Tensor:
        return self._model.language_model.model.embed_tokens(self._model.config.action_vocabulary - 1 - tree.tokens)

    def _node_positions(self, tree: TokenTree) -> Tensor:
        return self._prompts.lengths[:, None] + tree.depths

    def _is_decided_slot(self) -> Tensor:
        slots = torch.arange(self._cache.length, device=self._model.device)
        return (slots >= self._longest) & (slots < self._longest + DRAFTED_DIMENSIONS)

    def _node_mask(self, tree: TokenTree, counts: Tensor) -> Tensor:
        """Bool `[B, 1, N, length]`: a node sees its prompt, the decided tokens and its ancestors."""
        batch, nodes = tree.tokens.shape
        mask = self._prompt_visible[:, None, :].repeat(1, nodes, 1)
        order = torch.arange(DRAFTED_DIMENSIONS, device=counts.device)
        mask[:, :, self._decided_slots] = (order < counts[:, None])[:, None, :].expand(batch, nodes, -1)
        mask[:, :, self._node_slots[:nodes]] = tree.ancestors
        return mask[:, None]

    def _logits(self, hidden: Tensor, root: Tensor, nodes: int) -> Tensor:
        """Logits of the root's row and of the last `nodes` rows, out of hidden states `[B, S, width]`."""
        batch, rows, _ = hidden.shape
        wanted = torch.arange(rows - nodes, rows, device=hidden.device).expand(batch, -1)
        wanted = torch.cat([root[:, None], wanted], dim=1)
        self.hidden = hidden.gather(1, wanted[:, :, None].expand(-1, -1, hidden.shape[2]))
        return self._model.logits(self.hidden)
