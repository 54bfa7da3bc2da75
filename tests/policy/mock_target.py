"""A target without a network: logits are a fixed random function of the tokens before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policy.decoding.tree import ROOT, TokenTree
from policy.openvla.config import ACTION_BINS, PATCHES

ACTION_VOCABULARY, VOCABULARY, WIDTH = 300, 310, 4


class MockTarget:
    """Stands in for the model and, as `passes`, for `TargetPasses`. Counts the forward passes.

    strays: share of prefixes after which the largest logit is that of no action token.
    """

    def __init__(self, seed: int, strays: float = 0.0) -> None:
        self.seed, self.strays, self.forwards = seed, strays, 0
        self.device = torch.device("cpu")
        self.config = SimpleNamespace(action_vocabulary=ACTION_VOCABULARY)

    def logits(self, row: int, prefix: tuple[int, ...]) -> np.ndarray:
        """Float32 `[vocabulary]` after the ids `prefix` of row `row`: a peak of some bins' width, at a random place."""
        random = np.random.default_rng([self.seed, row, *prefix])
        logits = np.full(VOCABULARY, -50.0, np.float32)
        bins = -np.abs(np.arange(ACTION_BINS) - random.integers(0, ACTION_BINS)) + random.random(ACTION_BINS)
        logits[ACTION_VOCABULARY - ACTION_BINS : ACTION_VOCABULARY] = bins[::-1]
        if random.random() < self.strays:
            logits[2] = 9.0
        return logits

    def greedy(self, row: int) -> list[int]:
        """The seven ids of plain decoding."""
        ids: list[int] = []
        for _ in range(7):
            ids.append(int(self.logits(row, tuple(ids)).argmax()))
        return ids

    def prompts(self, batch: int) -> Any:
        """As much of a `PromptBatch` as the decoder itself looks at."""
        embeddings = torch.ones(batch, 1 + PATCHES, WIDTH)
        return SimpleNamespace(embeddings=embeddings, lengths=torch.full((batch,), 257), keys=(0,) * batch)

    def passes(self, model: object, prompts: Any, nodes: int, caches: object, **_: object) -> MockTarget:
        """In place of the class `TargetPasses`."""
        return self

    def prefill(self, tree: TokenTree) -> Tensor:
        return self._over(tree, [()] * len(tree.tokens))

    def extend(self, decided: Tensor, counts: Tensor, tree: TokenTree) -> Tensor:
        known = [tuple(ids[:count]) for ids, count in zip(decided.tolist(), counts.tolist(), strict=True)]
        return self._over(tree, known)

    def _over(self, tree: TokenTree, known: list[tuple[int, ...]]) -> Tensor:
        self.forwards += 1
        logits = np.zeros((len(known), 1 + tree.nodes, VOCABULARY), np.float32)
        for row, ids in enumerate(known):
            paths: list[tuple[int, ...]] = []
            logits[row, 0] = self.logits(row, ids)
            for node in range(int(tree.valid[row].sum())):
                parent = int(tree.parents[row, node])
                before = ids if parent == ROOT else paths[parent]
                paths.append((*before, ACTION_VOCABULARY - 1 - int(tree.tokens[row, node])))
                logits[row, 1 + node] = self.logits(row, paths[node])
        return torch.from_numpy(logits)
