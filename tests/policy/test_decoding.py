"""The reference decoder and its cache against recomputing the whole sequence for every token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.cache import StaticCache
from policy.decoding.prompt_batch import PromptBatch
from policy.decoding.stopwatch import Stopwatch
from policy.openvla.config import PATCHES
from policy.openvla.model import OpenVLA

PROMPTS = [[1, 8, 9, 10, 11, 12, 3], [1, 6, 3], [1, 20, 21, 22, 3]]
SESSIONS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def features(small_model: OpenVLA) -> Tensor:
    pixels = torch.randn(len(PROMPTS), 6, 224, 224, generator=torch.Generator().manual_seed(5))
    return small_model.image_features(pixels)


def recomputed_tokens(model: OpenVLA, prompt: list[int], features: Tensor) -> list[int]:
    """Greedy tokens of one prompt, each from a full causal pass without a cache."""
    ids: list[int] = []
    for _ in range(7):
        embeddings = model.embed(torch.tensor([prompt + ids]), features)
        positions = torch.arange(embeddings.shape[1])[None]
        ids.append(int(model.logits(model.language_model(embeddings, positions)[0, -1]).argmax()))
    return ids


@torch.inference_mode()
def test_ragged_batch_decodes_what_each_prompt_gives_alone(small_model: OpenVLA, features: Tensor) -> None:
    batch = PromptBatch.embed(small_model, PROMPTS, features)
    tokens, traces = AutoregressiveDecoder(small_model).decode(batch, SESSIONS, Stopwatch(small_model.device))
    expected = [recomputed_tokens(small_model, p, features[i : i + 1]) for i, p in enumerate(PROMPTS)]
    assert tokens.tolist() == expected
    assert len({tuple(row) for row in expected}) == len(PROMPTS)
    assert [sum(trace.accepted_per_pass) for trace in traces] == [7] * len(PROMPTS)
    assert traces[0].target_passes == 7


@torch.inference_mode()
def test_steps_expose_the_states_of_a_full_pass(small_model: OpenVLA, features: Tensor) -> None:
    batch = PromptBatch.embed(small_model, PROMPTS, features)
    steps = list(AutoregressiveDecoder(small_model).steps(batch))
    for row, prompt in enumerate(PROMPTS):
        ids = prompt + [int(step.tokens[row]) for step in steps[:-1]]
        embeddings = small_model.embed(torch.tensor([ids]), features[row : row + 1])
        hidden = small_model.language_model(embeddings, torch.arange(embeddings.shape[1])[None])[0, -7:]
        found = torch.stack([step.hidden[row] for step in steps])
        torch.testing.assert_close(found, hidden, atol=1e-4, rtol=0)
        logits = torch.stack([step.logits[row] for step in steps])
        torch.testing.assert_close(logits, small_model.logits(hidden), atol=1e-3, rtol=0)


@torch.inference_mode()
def test_an_early_end_of_sequence_does_not_stop_decoding(
    small_model: OpenVLA, features: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_of_sequence = 2
    real = OpenVLA.logits

    def always_ending(model: OpenVLA, hidden: Tensor) -> Tensor:
        logits = real(model, hidden)
        logits[..., end_of_sequence] = 1e9
        return logits

    monkeypatch.setattr(OpenVLA, "logits", always_ending)
    batch = PromptBatch.embed(small_model, PROMPTS, features)
    tokens, _ = AutoregressiveDecoder(small_model).decode(batch, SESSIONS, Stopwatch(small_model.device))
    assert tokens.tolist() == [[end_of_sequence] * 7] * len(PROMPTS)


@torch.inference_mode()
def test_tree_nodes_see_their_ancestors_only(small_model: OpenVLA) -> None:
    """Two branches behind one prefix, verified in one pass: each gets the states it would get alone."""
    language_model, width = small_model.language_model, small_model.config.language.width
    prefix, branches = torch.randn(1, 5, width), [torch.randn(1, 2, width), torch.randn(1, 2, width)]
    cache = StaticCache(small_model.config.language, batch=1, length=16, device="cpu", dtype=torch.float32)
    language_model(prefix, torch.arange(5)[None], cache)
    mask = torch.zeros(4, 16, dtype=torch.bool)
    mask[:, :5] = True
    for node, ancestors in enumerate(([5], [5, 6], [7], [7, 8])):
        mask[node, ancestors] = True
    found = language_model(
        torch.cat(branches, 1), torch.tensor([[5, 6, 5, 6]]), cache, slots=torch.tensor([[5, 6, 7, 8]]), mask=mask
    )
    for index, branch in enumerate(branches):
        alone = language_model(torch.cat([prefix, branch], 1), torch.arange(7)[None])[:, 5:]
        torch.testing.assert_close(found[:, 2 * index : 2 * index + 2], alone, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_old_slots_of_a_reused_cache_are_never_seen(small_model: OpenVLA) -> None:
    width = small_model.config.language.width
    cache = StaticCache(small_model.config.language, batch=1, length=12, device="cpu", dtype=torch.float32)
    small_model.language_model(100 * torch.randn(1, 12, width), torch.arange(12)[None], cache)
    embeddings, positions = torch.randn(1, 8, width), torch.arange(8)[None]
    again = small_model.language_model(embeddings, positions, cache)
    fresh = small_model.language_model(embeddings, positions)
    torch.testing.assert_close(again, fresh, atol=1e-5, rtol=0)


def test_prompts_and_images_must_match(small_model: OpenVLA, features: Tensor) -> None:
    with pytest.raises(ValueError, match=r"got 3 images and prompts of lengths \[2\]"):
        PromptBatch.embed(small_model, [[1, 3]], features)
    with pytest.raises(ValueError, match=r"lengths \[1, 0, 1\]"):
        PromptBatch.embed(small_model, [[1], [], [1]], features)
    with pytest.raises(ValueError, match="token id 29871 is not in the model's vocabulary of 384"):
        PromptBatch.embed(small_model, [[1], [29871], [1]], features)
    assert PromptBatch.embed(small_model, PROMPTS, features).lengths.tolist() == [PATCHES + 7, PATCHES + 3, PATCHES + 5]


def test_stopwatch_adds_up_laps_of_one_stage() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    stopwatch.lap("prefill")
    first = stopwatch.stage_ms["prefill"]
    stopwatch.lap("decode")
    stopwatch.lap("prefill")
    assert 0 <= first < stopwatch.stage_ms["prefill"]
    assert set(stopwatch.stage_ms) == {"prefill", "decode"}
