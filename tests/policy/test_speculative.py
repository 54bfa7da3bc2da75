"""Under exact acceptance the tokens are plain decoding's: on networks, for every drafter, tree and tail."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from policy.decoding.acceptance.exact import Exact
from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.prompt_batch import PromptBatch, Sight
from policy.decoding.speculative import SpeculativeDecoder, Tail
from policy.decoding.stopwatch import Stopwatch
from policy.drafting.base import DraftContext
from policy.drafting.placement import Placement
from policy.drafting.registry import DRAFTERS, DrafterMaterial
from policy.openvla.action_tokens import ActionStatistics
from policy.openvla.checkpoint import load_checkpoint
from policy.openvla.config import ACTION_BINS
from policy.openvla.model import OpenVLA

PROMPTS = [[1, 8, 9, 10, 11, 12, 3], [1, 6, 3]]
SESSIONS = ["a", "b"]
STATISTICS = ActionStatistics(-np.ones(7), np.ones(7), np.array([True] * 6 + [False]))
TAILS: tuple[Tail, ...] = ("jacobi", "tree", "plain")


class Frame(NamedTuple):
    features: Tensor
    sight: Sight

    @classmethod
    def of(cls, model: OpenVLA, pixels: Tensor) -> Frame:
        return cls(model.image_features(pixels), Sight(pixels, ("", "")))


@pytest.fixture(scope="module")
def frames(small_model: OpenVLA) -> list[Frame]:
    """Four steps of two sessions; the pictures change little."""
    generator = torch.Generator().manual_seed(5)
    still = torch.randn(len(PROMPTS), 6, 224, 224, generator=generator)
    moved = [still + 0.02 * step * torch.randn(still.shape, generator=generator) for step in range(4)]
    return [Frame.of(small_model, pixels) for pixels in moved]


class Told:
    """Proposes what it is told to, step after step."""

    name, needs_features, heeds_known = "told", False, True

    def __init__(self, actions: list[np.ndarray]) -> None:
        self._actions = iter(actions)

    def propose(self, context: DraftContext) -> np.ndarray | None:
        return None if context.known else next(self._actions, None)

    def observe(self, context: DraftContext, action: np.ndarray) -> None:
        pass


def plain_tokens(model: OpenVLA, frames: list[Frame]) -> list[list[list[int]]]:
    decoder = AutoregressiveDecoder(model)
    prompts = [PromptBatch.embed(model, PROMPTS, *frame) for frame in frames]
    return [decoder.decode(batch, SESSIONS, Stopwatch(model.device))[0].tolist() for batch in prompts]


def speculated(decoder: SpeculativeDecoder, frames: list[Frame]) -> tuple[list[list[list[int]]], list[int]]:
    """Tokens by step, and all numbers of passes."""
    tokens, passes = [], []
    for frame in frames:
        batch = PromptBatch.embed(decoder.model, PROMPTS, *frame)
        ids, traces = decoder.decode(batch, SESSIONS, Stopwatch(decoder.model.device))
        tokens.append(ids.tolist())
        passes += [trace.target_passes for trace in traces]
    return tokens, passes


@torch.inference_mode()
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("nodes", [1, 6, 40])
def test_all_drafters_and_tree_sizes(acting_model: OpenVLA, frames: list[Frame], nodes: int, tail: Tail) -> None:
    material = DrafterMaterial(acting_model, STATISTICS, Path())
    rule = Exact()
    drafters = [make(material) for make in DRAFTERS.values()]
    decoder = SpeculativeDecoder(acting_model, rule, drafters, Placement(nodes, 0.0, rule.reach), tail)
    tokens, passes = speculated(decoder, frames)
    assert tokens == plain_tokens(acting_model, frames)
    assert max(passes) <= 7
    assert nodes == 1 or min(passes) < 7


@torch.inference_mode()
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("shift", [0, 1, 128, "random"])
def test_right_near_wrong_and_random_drafts(
    acting_model: OpenVLA, frames: list[Frame], shift: int | str, tail: Tail
) -> None:
    expected = plain_tokens(acting_model, frames)
    random = np.random.default_rng(0)
    answers = []
    for step in expected:
        for ids in step:
            right = acting_model.config.action_vocabulary - 1 - np.array(ids)
            answers.append(random.integers(0, 256, 7) if isinstance(shift, str) else (right + shift) % 256)
    rule = Exact()
    decoder = SpeculativeDecoder(acting_model, rule, [Told(answers)], Placement(64, 0.0, rule.reach), tail)
    tokens, passes = speculated(decoder, frames)
    assert tokens == expected
    assert max(passes) <= 7
    if shift == 0:
        assert max(passes) < 7


@torch.inference_mode()
def test_a_model_that_leaves_the_action_tokens(small_model: OpenVLA, frames: list[Frame]) -> None:
    model = copy.deepcopy(small_model)
    first = model.config.action_vocabulary - ACTION_BINS
    with torch.no_grad():
        model.language_model.lm_head.weight[:first] *= 3.0
    expected = plain_tokens(model, frames)
    assert any(token < first for step in expected for ids in step for token in ids)
    rule = Exact()
    decoder = SpeculativeDecoder(model, rule, [Told([np.full(7, 9)] * 8)], Placement(16, 0.0, rule.reach))
    assert speculated(decoder, frames)[0] == expected


@pytest.mark.golden
@torch.inference_mode()
@pytest.mark.parametrize("tail", TAILS)
def test_the_golden_checkpoint(golden_directory: Path, tail: Tail) -> None:
    model = load_checkpoint(golden_directory / "checkpoint", torch.device("cpu"), torch.float32)
    generator = torch.Generator().manual_seed(1)
    pixels = [torch.randn(2, 6, 224, 224, generator=generator) for _ in range(2)]
    frames = [Frame.of(model, each) for each in pixels for _ in range(2)]  # each picture twice
    rule = Exact()
    drafters = [DRAFTERS[name](DrafterMaterial(model, STATISTICS, Path())) for name in ("previous", "retrieval")]
    decoder = SpeculativeDecoder(model, rule, drafters, Placement(16, 0.0, rule.reach), tail)
    assert speculated(decoder, frames)[0] == plain_tokens(model, frames)
