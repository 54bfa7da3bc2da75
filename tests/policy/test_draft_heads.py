"""Heads draft from the right features at the right places, and what they draft never changes exact tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from policy.decoding.acceptance.exact import Exact
from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.capture import Recording
from policy.decoding.prompt_batch import PromptBatch
from policy.decoding.speculative import SpeculativeDecoder, Tail
from policy.decoding.stopwatch import Stopwatch
from policy.drafting.action_rows import ActionRows
from policy.drafting.eagle import EagleHead
from policy.drafting.head_checkpoint import load_head, save_head
from policy.drafting.head_network import ROWS, Decided, HeadConfig, HeadNetwork
from policy.drafting.parallel import ParallelHead
from policy.drafting.placement import Placement
from policy.drafting.previous import PreviousAction
from policy.drafting.reading_head import ReadingHead
from policy.openvla.checkpoint import CheckpointError
from policy.openvla.language_model import rotary_tables
from policy.openvla.model import OpenVLA
from policy.types import DecodeTrace

PROMPTS = [[1, 8, 9, 10, 11, 12, 3], [1, 6, 3]]
SESSIONS = ["a", "b"]
HEADS: list[type[ReadingHead]] = [EagleHead, ParallelHead]


def random_network(model: OpenVLA, kind: str) -> HeadNetwork:
    torch.manual_seed(3)
    network = HeadNetwork(HeadConfig(kind, replace(model.config.language, layers=1)))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def frames(small_model: OpenVLA) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    still = torch.randn(len(PROMPTS), 6, 224, 224, generator=generator)
    moved = [still + 0.02 * step * torch.randn(still.shape, generator=generator) for step in range(3)]
    return [small_model.image_features(pixels) for pixels in moved]


def decode_all(decoder: SpeculativeDecoder | AutoregressiveDecoder, frames: Sequence[Tensor]) -> list[list[list[int]]]:
    batches = [PromptBatch.embed(decoder.model, PROMPTS, features) for features in frames]
    return [decoder.decode(batch, SESSIONS, Stopwatch(torch.device("cpu")))[0].tolist() for batch in batches]


class RunAgain:
    """Records as a graph does: the function runs again on its own buffers."""

    recorded = 0

    def __call__(self, function, inputs) -> Recording:
        self.recorded += 1
        output = function()
        return Recording(inputs, output, lambda: output.copy_(function()))


@torch.inference_mode()
@pytest.mark.parametrize("tail", ["jacobi", "tree", "head", "plain"])
def test_rows_of_nobody_change_nothing(acting_model: OpenVLA, frames: list[Tensor], tail: Tail) -> None:
    """One and the same session, alone and as the first of three rows."""

    def actions(rows: int) -> list[tuple[list[int], DecodeTrace]]:
        head = EagleHead(random_network(acting_model, "eagle"), ActionRows.of(acting_model))
        decoder = SpeculativeDecoder(acting_model, Exact(), [PreviousAction()], tail=tail, head=head)
        found = []
        for features in frames:
            batch = PromptBatch.embed(acting_model, PROMPTS[:1] * rows, features[:1].expand(rows, -1, -1))
            ids, (trace,) = decoder.decode(batch, ["a"], Stopwatch(torch.device("cpu")))
            assert ids.shape == (1, 7)
            found.append((ids[0].tolist(), trace))
        assert list(decoder._memories) == ["a"]
        return found

    assert actions(3) == actions(1)


@torch.inference_mode()
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("tail", ["tree", "head"])
@pytest.mark.parametrize("kind", HEADS)
def test_whatever_a_head_drafts_tokens_stay_the_same(
    acting_model: OpenVLA, frames: list[Tensor], kind: type[ReadingHead], tail: Tail, captured: bool
) -> None:
    rule, record = Exact(), RunAgain() if captured else None
    head = kind(random_network(acting_model, kind.name), ActionRows.of(acting_model), record)
    placement = Placement(24, 0.0, rule.reach)
    decoder = SpeculativeDecoder(acting_model, rule, [PreviousAction()], placement, tail, head=head)
    assert decode_all(decoder, frames) == decode_all(AutoregressiveDecoder(acting_model), frames)


@torch.inference_mode()
@pytest.mark.parametrize("kind", HEADS)
def test_after_a_rehearsal_nothing_is_recorded(
    acting_model: OpenVLA, frames: list[Tensor], kind: type[ReadingHead]
) -> None:
    rule, record = Exact(), RunAgain()
    head = kind(random_network(acting_model, kind.name), ActionRows.of(acting_model), record)
    decoder = SpeculativeDecoder(acting_model, rule, (), Placement(8, 0.0, rule.reach), "head", head=head)
    decoder.rehearse(PromptBatch.embed(acting_model, PROMPTS, frames[0]))
    rehearsed = record.recorded
    decode_all(decoder, frames)
    assert record.recorded == rehearsed > 1


class Told:
    """A head that knows what is right and looks at what it is given; by row, how many tokens it drafts right."""

    name = "told"

    def __init__(self, model: OpenVLA, wrong_behind: Sequence[int]) -> None:
        self._model, self._wrong_behind = model, wrong_behind
        self.drafts = 0

    def read(self, embeddings: Tensor, features: Tensor, lengths: Tensor) -> None:
        steps = list(AutoregressiveDecoder(self._model).steps(PromptBatch(embeddings, lengths, keys=())))
        self.ids = torch.stack([step.tokens for step in steps], dim=1)
        self.hidden = torch.stack([step.hidden for step in steps], dim=1)
        last = features[torch.arange(len(lengths)), lengths - 1]
        torch.testing.assert_close(last, self.hidden[:, 0], rtol=1e-4, atol=1e-4)

    def draft(self, bins: Tensor, features: Tensor, counts: Tensor, fewest: int) -> Tensor:
        self.drafts += 1
        assert counts.min() == fewest
        right = self._model.config.action_vocabulary - 1 - self.ids
        chances = torch.zeros(len(counts), 6, 256)
        for row, count in enumerate(counts.tolist()):
            if not features[row, count - 1].any():
                continue  # an action that is done
            assert bins[row, :count].tolist() == right[row, :count].tolist()
            torch.testing.assert_close(features[row, :count], self.hidden[row, :count], rtol=1e-4, atol=1e-4)
            for dimension in range(count, 6):
                wrong = dimension >= count + self._wrong_behind[row]
                chances[row, dimension, (right[row, dimension] + wrong) % 256] = 1.0
        return chances


@torch.inference_mode()
@pytest.mark.parametrize("wrong_behind", [(1, 1), (2, 2), (6, 6), (6, 1)])
def test_a_head_is_given_the_features_that_chose_the_tokens(
    acting_model: OpenVLA, frames: list[Tensor], wrong_behind: tuple[int, int]
) -> None:
    rule, head = Exact(), Told(acting_model, wrong_behind)
    decoder = SpeculativeDecoder(acting_model, rule, (), Placement(6, 0.0, rule.reach), "head", head=head)
    batch = PromptBatch.embed(acting_model, PROMPTS, frames[0])
    _, traces = decoder.decode(batch, SESSIONS, Stopwatch(torch.device("cpu")))
    # The prompt's pass gives one token, each further one what was right and one more.
    passes = [{1: 4, 2: 3, 6: 2}[right] for right in wrong_behind]
    assert [trace.target_passes for trace in traces] == passes
    assert head.drafts == max(passes) - 1


def naive_hidden(network: HeadNetwork, embeddings: Tensor, features: Tensor) -> Tensor:
    """One causal pass over a whole sequence, without cache: row t reads feature t and embedding t."""
    fused = network.fc(torch.cat([embeddings, features], dim=-1))
    sizes = network.config.layer
    positions = torch.arange(fused.shape[1]).expand(len(fused), -1)
    rotary = rotary_tables(positions, sizes.head_size, sizes.rotary_base, fused.dtype)
    return network.layers[0](fused, rotary, None, None)


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 3, ROWS])
def test_unrolling_is_a_causal_pass_that_feeds_on_itself(small_model: OpenVLA, count: int) -> None:
    network, width = random_network(small_model, "eagle"), small_model.config.language.width
    prompt_length, steps = 9, 3
    generator = torch.Generator().manual_seed(0)
    embeddings, features = (torch.randn(1, prompt_length, width, generator=generator) for _ in range(2))
    tokens, known = (torch.randn(1, ROWS, width, generator=generator) for _ in range(2))
    upcoming = torch.randn(steps, 1, width, generator=generator)
    padding = torch.full((1, 4, width), 7.0)
    # The feature that chose the first token is the prompt's last one.
    known[:, 0] = features[:, -1]
    prompt = network.read(torch.cat([embeddings, padding], 1), torch.cat([features, padding], 1))
    follow = iter(upcoming)
    decided = Decided(tokens, known, torch.tensor([count]))
    _, drafted = network.unroll(prompt, torch.tensor([prompt_length]), decided, steps, lambda hidden: next(follow))

    rows = torch.cat([embeddings[:, 1:], tokens[:, :count]], dim=1)
    fed = torch.cat([features[:, :-1], known[:, :count]], dim=1)
    for step in range(steps + 1):
        hidden = naive_hidden(network, rows, fed)[:, -1:]
        torch.testing.assert_close(drafted[:, step : step + 1], hidden, rtol=1e-4, atol=1e-5)
        if step < steps:
            rows, fed = torch.cat([rows, upcoming[step][None]], dim=1), torch.cat([fed, hidden], dim=1)


@torch.inference_mode()
def test_at_once_looks_at_decided_tokens_only_and_at_all_queries(small_model: OpenVLA) -> None:
    network, width = random_network(small_model, "parallel"), small_model.config.language.width
    generator = torch.Generator().manual_seed(0)
    prompt = network.read(*(torch.randn(2, 9, width, generator=generator) for _ in range(2)))
    lengths, counts = torch.tensor([9, 6]), torch.tensor([2, 4])
    tokens, features = (torch.randn(2, ROWS, width, generator=generator) for _ in range(2))
    before = network.at_once(prompt, lengths, Decided(tokens, features, counts))
    tokens[0, 2:], features[1, 4:] = 5.0, 5.0  # undecided: must not matter
    prompt[:, 1, :, 5:] = 3.0  # behind the second prompt's last read position
    torch.testing.assert_close(network.at_once(prompt, lengths, Decided(tokens, features, counts)), before)
    network.queries[4] += 1.0
    after = network.at_once(prompt, lengths, Decided(tokens, features, counts))
    assert torch.equal(after[0, :2], before[0, :2]), "decided tokens see what is before them"
    assert not torch.allclose(after[0, 2], before[0, 2]), "unknown ones see each other"


def test_action_rows_count_as_bins_do(small_model: OpenVLA) -> None:
    rows, end = ActionRows.of(small_model), small_model.config.action_vocabulary
    hidden = torch.randn(2, small_model.config.language.width)
    expected = small_model.logits(hidden)[:, end - 256 : end].flip(-1)
    torch.testing.assert_close(rows.logits(hidden), expected)
    bins = torch.tensor([0, 17, 255])
    assert torch.equal(rows.embed(bins), small_model.language_model.model.embed_tokens(end - 1 - bins))


@pytest.mark.parametrize("kind", ["eagle", "parallel"])
def test_a_head_survives_the_disk(small_model: OpenVLA, tmp_path: Path, kind: str) -> None:
    network = random_network(small_model, kind)
    save_head(network, tmp_path / "head")
    loaded = load_head(tmp_path / "head", small_model, kind)
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.bfloat16().float()), name


@pytest.mark.parametrize("pickled", [False, True])
def test_the_published_layout_loads(small_model: OpenVLA, tmp_path: Path, pickled: bool) -> None:
    network = random_network(small_model, "eagle")
    published = dict(network.state_dict()) | {
        "embed_tokens.weight": small_model.language_model.model.embed_tokens.weight
    }
    assert {name.split(".")[0] for name in published} == {"fc", "layers", "embed_tokens"}
    if pickled:
        torch.save(published, tmp_path / "pytorch_model.bin")
    else:
        save_file({name: tensor.clone() for name, tensor in published.items()}, tmp_path / "model.safetensors")
    sizes = network.config.layer.to_json()
    assert "head" not in sizes
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    loaded = load_head(tmp_path, small_model, "eagle")
    assert torch.equal(loaded.fc.weight, network.fc.weight)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("should-never-exist"),))


def test_what_is_no_head_for_this_target_is_refused(small_model: OpenVLA, tmp_path: Path) -> None:
    network = random_network(small_model, "eagle")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_head(tmp_path, small_model, "eagle")
    save_head(network, tmp_path)
    with pytest.raises(CheckpointError, match="a head of kind 'eagle', expected 'parallel'"):
        load_head(tmp_path, small_model, "parallel")
    sizes = network.config.to_json()
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"hidden_size": 64}))
    with pytest.raises(CheckpointError, match="width is 64, the target's 96"):
        load_head(tmp_path, small_model, "eagle")
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"intermediate_size": 32}))
    with pytest.raises(CheckpointError, match=r"3 tensors are not those.*down_proj"):
        load_head(tmp_path, small_model, "eagle")
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"embed_tokens.weight": torch.zeros(7, 96)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="works with the target it was trained for"):
        load_head(tmp_path, small_model, "eagle")
    (tmp_path / "model.safetensors").unlink()
    torch.save({"fc.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_head(tmp_path, small_model, "eagle")
    assert not Path("should-never-exist").exists()


@torch.inference_mode()
def test_rows_with_more_decided_tokens_draft_less(small_model: OpenVLA) -> None:
    for kind in HEADS:
        head = kind(random_network(small_model, kind.name), ActionRows.of(small_model))
        width = small_model.config.language.width
        head.read(torch.randn(3, 12, width), torch.randn(3, 12, width), torch.tensor([12, 9, 10]))
        chances = head.draft(
            torch.randint(0, 256, (3, ROWS)), torch.randn(3, ROWS, width), torch.tensor([1, 3, 5]), fewest=1
        )
        assert chances.shape == (3, 6, 256)
        drafted = np.array([[d >= count for d in range(6)] for count in (1, 3, 5)])
        np.testing.assert_allclose(chances.sum(-1).numpy(), drafted, atol=1e-5)
