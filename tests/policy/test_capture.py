"""Replayed passes give what plain ones give, whatever order shapes come in. Recording is played by hand where there is
no GPU: the function runs again on the recorder's own buffers.
"""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from policy.decoding.acceptance import make_rule
from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.cache import CachePool
from policy.decoding.capture import Captured, GraphRecorder, Recording, capture_passes, recorded_batch
from policy.decoding.prompt_batch import PromptBatch
from policy.decoding.speculative import SpeculativeDecoder
from policy.decoding.stopwatch import Stopwatch
from policy.drafting.previous import PreviousAction
from policy.openvla.action_tokens import ActionStatistics
from policy.openvla.model import OpenVLA

STATISTICS = ActionStatistics(-np.ones(7), np.ones(7), np.array([True] * 6 + [False]))


class HandRecorder:
    """Like a graph it reads and writes at fixed addresses; counts what it is asked."""

    def __init__(self) -> None:
        self.recorded = self.played = 0

    def __call__(self, function: Callable[[], Tensor | None], inputs: tuple[Tensor, ...]) -> Recording:
        self.recorded += 1
        output = function()

        def play() -> None:
            self.played += 1
            found = function()
            if output is not None:
                output.copy_(found)

        return Recording(inputs, output, play)


def test_a_shape_is_recorded_once_and_results_outlive_the_next_replay():
    recorder = HandRecorder()
    doubled = Captured(lambda x: 2 * x, recorder)
    first, second, other = doubled((torch.ones(3),)), doubled((torch.full((3,), 5.0),)), doubled((torch.ones(4),))
    assert first.tolist() == [2.0] * 3
    assert second.tolist() == [10.0] * 3
    assert other.tolist() == [2.0] * 4
    assert (recorder.recorded, recorder.played) == (2, 3)


def test_what_a_recorded_function_calls_belongs_to_its_recording():
    inner, outer, place = HandRecorder(), HandRecorder(), torch.zeros(1)
    doubled = Captured(lambda x: 2 * x, inner)

    def keep(x: Tensor, place: Tensor) -> None:
        place.copy_(doubled((x,)) + 1)

    kept = Captured(keep, outer)
    for value in (1.0, 5.0):
        assert kept((torch.full((1,), value),), place) is None
        assert place.tolist() == [2 * value + 1]
    assert (inner.recorded, outer.recorded) == (0, 1)
    assert doubled((torch.ones(1),)).tolist() == [2.0]
    assert inner.recorded == 1


def test_one_cache_at_the_same_addresses_for_the_same_shape(small_model: OpenVLA):
    pool = CachePool(small_model)
    small = pool.get(1, 20)
    assert pool.get(1, 20) is small
    assert (small.batch, small.length) == (1, 20)
    large = pool.get(3, 300)
    assert (large.batch, large.length) == (3, 300)
    assert pool.get(1, 20) is small, "what was recorded with it stays valid"
    assert pool.get(2, 300).keys.data_ptr() == large.keys.data_ptr()


@pytest.fixture
def steps() -> list[tuple[Tensor, list[list[int]]]]:
    """Pixels and prompts of batches of different sizes and prompt lengths."""
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(len(lengths), 6, 224, 224, generator=generator), [[1, *range(3, 3 + n)] for n in lengths])
        for lengths in ([4], [4, 9], [9], [4, 11, 4], [4])
    ]


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["autoregressive", "speculative"])
def test_decoding_with_replayed_passes_gives_the_same_tokens(small_model: OpenVLA, steps, kind: str):
    def tokens(model: OpenVLA, record: HandRecorder | None = None) -> list[np.ndarray]:
        plain, rule = AutoregressiveDecoder(model, record), make_rule("exact", {}, STATISTICS)
        decoder = plain if kind == "autoregressive" else SpeculativeDecoder(model, rule, record=record)
        found = []
        for pixels, prompts in steps:
            batch = PromptBatch.embed(model, prompts, model.image_features(pixels))
            names = [f"robot {number}" for number in range(len(prompts))]
            found.append(decoder.decode(batch, names, Stopwatch(model.device))[0].numpy())
        return found

    expected, recorder = tokens(small_model), HandRecorder()
    captured = copy.deepcopy(small_model)
    capture_passes(captured, recorder)
    for want, got in zip(expected, tokens(captured, recorder), strict=True):
        np.testing.assert_array_equal(got, want)
    assert recorder.played > recorder.recorded > 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graphs_on_a_gpu():
    doubled = Captured(lambda x: 2 * x, GraphRecorder())
    for value in (1.0, 5.0, 3.0):
        assert doubled((torch.full((3,), value, device="cuda"),)).tolist() == [2 * value] * 3


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["autoregressive", "speculative"])
def test_after_a_rehearsal_nothing_is_recorded(small_model: OpenVLA, steps, kind: str):
    model, recorder = copy.deepcopy(small_model), HandRecorder()
    capture_passes(model, recorder)
    plain, rule = AutoregressiveDecoder(model, recorder), make_rule("exact", {}, STATISTICS)
    decoder = (
        plain if kind == "autoregressive" else SpeculativeDecoder(model, rule, [PreviousAction()], record=recorder)
    )
    singles = [(pixels, prompts) for pixels, prompts in steps if len(prompts) == 1]
    features = [model.image_features(pixels) for pixels, _ in singles]
    decoder.rehearse(PromptBatch.embed(model, [[1] * 9], features[0]))
    decoder.rehearse(PromptBatch.embed(model, [[1] * 4], features[0]))
    recorded = recorder.recorded
    for (_, prompts), seen in zip(singles, features, strict=True):
        decoder.decode(PromptBatch.embed(model, prompts, seen), ["robot"], Stopwatch(model.device))
    assert recorder.recorded == recorded > 3


def test_batches_of_all_sizes_are_filled_up_to_few():
    sizes = {rows: recorded_batch(rows) for rows in range(1, 200)}
    assert all(rows <= size < 1.5 * rows for rows, size in sizes.items() if rows <= 64)
    assert [sizes[rows] for rows in (1, 2, 3, 17, 64, 65, 129)] == [1, 2, 3, 24, 64, 128, 192]
    assert len(set(sizes.values())) <= 16
