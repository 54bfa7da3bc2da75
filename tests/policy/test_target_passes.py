"""Every path of a tree, in the prompt's pass and in later ones, sees what plain decoding of that path would see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from policy.decoding.cache import CachePool
from policy.decoding.prompt_batch import PromptBatch
from policy.decoding.target_passes import TargetPasses
from policy.decoding.tree import ROOT, Draft, TokenTree
from policy.openvla.model import OpenVLA

PROMPTS = [[1, 8, 9, 10, 11, 12, 3], [1, 6, 3]]
NODES = 9
FIRST = (
    Draft(0, (3, 200, 5, 6, 7, 8, 9, 10), (ROOT, ROOT, 0, 0, 1, 3, 5, 6), ("a",) * 8),
    Draft.chain(0, [9, 8, 7, 6, 5, 4], "a"),
)
LATER = (Draft(2, (3, 4, 5, 6), (ROOT, 0, 1, 2), ("a",) * 4), Draft(4, (1, 2, 3), (ROOT, ROOT, 0), ("a",) * 3))
DECIDED = ([300, 301], [310, 311, 312, 2])


@pytest.fixture(scope="module")
def features(small_model: OpenVLA) -> Tensor:
    pixels = torch.randn(len(PROMPTS), 6, 224, 224, generator=torch.Generator().manual_seed(5))
    return small_model.image_features(pixels)


def plain(model: OpenVLA, features: Tensor, row: int, ids: list[int]) -> Tensor:
    """Logits after a prompt and ids, from one causal pass without a cache."""
    embeddings = model.embed(torch.tensor([PROMPTS[row] + ids]), features[row : row + 1])
    return model.logits(model.language_model(embeddings, torch.arange(embeddings.shape[1])[None])[0, -1])


def assert_all_paths(
    model: OpenVLA, features: Tensor, logits: Tensor, drafts: tuple[Draft, ...], known: tuple[list[int], ...]
) -> None:
    for row, draft in enumerate(drafts):
        paths: list[list[int]] = []
        for token, parent in zip(draft.tokens, draft.parents, strict=True):
            before = [] if parent == ROOT else paths[parent]
            paths.append([*before, model.config.action_vocabulary - 1 - token])
        for place, path in enumerate([[], *paths]):
            expected = plain(model, features, row, known[row] + path)
            torch.testing.assert_close(logits[row, place], expected, atol=1e-3, rtol=0)


@torch.inference_mode()
def test_every_path_in_the_prompts_pass_and_in_later_ones(small_model: OpenVLA, features: Tensor) -> None:
    prompts = PromptBatch.embed(small_model, PROMPTS, features)
    passes = TargetPasses(small_model, prompts, NODES, CachePool(small_model))
    nothing: tuple[list[int], ...] = ([], [])
    logits = passes.prefill(TokenTree.of(FIRST, nodes=8))
    assert_all_paths(small_model, features, logits, FIRST, nothing)
    decided = torch.tensor([ids + [0] * (6 - len(ids)) for ids in DECIDED])
    counts = torch.tensor([len(ids) for ids in DECIDED])
    kept = TargetPasses(small_model, prompts, NODES, CachePool(small_model), keeps_prompt=True)
    torch.testing.assert_close(kept.prefill(TokenTree.of(FIRST, nodes=8)), logits)
    assert kept.prompt_hidden.shape[:2] == prompts.embeddings.shape[:2]
    # Twice: the second time all slots hold what another pass left there.
    for nodes in (4, NODES):
        logits = passes.extend(decided, counts, TokenTree.of(LATER, nodes))
        assert_all_paths(small_model, features, logits, LATER, DECIDED)


@torch.inference_mode()
def test_a_pass_without_drafts(small_model: OpenVLA, features: Tensor) -> None:
    prompts = PromptBatch.embed(small_model, PROMPTS, features)
    passes = TargetPasses(small_model, prompts, 0, CachePool(small_model))
    logits = passes.prefill(TokenTree.of([Draft(), Draft()], nodes=0))
    assert logits.shape[:2] == (2, 1)
    assert_all_paths(small_model, features, logits, (Draft(), Draft()), ([], []))
    # A session whose action is complete takes part without meaning.
    ids = torch.from_numpy(np.full((2, 6), 300))
    logits = passes.extend(ids, torch.tensor([7, 6]), TokenTree.of([Draft(6), Draft(6)], nodes=0))
    assert_all_paths(small_model, features, logits[1:], (), ())
    torch.testing.assert_close(logits[1, 0], plain(small_model, features, 1, [300] * 6), atol=1e-3, rtol=0)
