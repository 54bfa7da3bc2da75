"""A head that was widened with its target drafts what the small one drafts for the small target."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from policy.decoding.acceptance.exact import Exact
from policy.decoding.prompt_batch import PromptBatch
from policy.decoding.speculative import SpeculativeDecoder
from policy.decoding.stopwatch import Stopwatch
from policy.drafting.action_rows import ActionRows
from policy.drafting.eagle import EagleHead
from policy.drafting.head_checkpoint import load_head, save_head
from policy.drafting.head_network import HeadConfig, HeadNetwork
from policy.drafting.parallel import ParallelHead
from policy.drafting.reading_head import ReadingHead
from policy.drafting.registry import trained_drafters
from policy.openvla.checkpoint import CheckpointError, load_checkpoint
from policy.openvla.config import OpenVLAConfig
from policy.openvla.model import OpenVLA
from policy.training.drafter_config import DrafterTrainingConfig
from policy.training.widen import TargetSizes, widened
from policy.training.widened_checkpoint import widen_checkpoint
from policy.training.widened_drafters import (
    drafters_beside,
    drafters_for_wide,
    widened_head,
    write_widened_drafters,
)

SIZES = TargetSizes(text_width=288, text_mlp=480, vocabulary=1000)
HEADS: list[type[ReadingHead]] = [EagleHead, ParallelHead]
SESSIONS = ["a", "b"]


def random_network(model: OpenVLA, kind: str) -> HeadNetwork:
    torch.manual_seed(3)
    return HeadNetwork(HeadConfig(kind, replace(model.config.language, layers=1))).eval().requires_grad_(False)


def decoded(model: OpenVLA, head: ReadingHead, pixels: Tensor) -> tuple[list[list[int]], list[tuple[object, ...]]]:
    """Bins from the last, and for each session who drafted what was accepted, pass by pass."""
    decoder = SpeculativeDecoder(model, Exact(), tail="head", head=head)
    prompts = PromptBatch.embed(model, [[1, 8, 9, 3], [1, 6, 3]], model.image_features(pixels))
    ids, traces = decoder.decode(prompts, SESSIONS, Stopwatch(torch.device("cpu")))
    return (model.config.action_vocabulary - ids).tolist(), [(t.accepted_per_pass, t.sources) for t in traces]


@torch.inference_mode()
@pytest.mark.parametrize("kind", HEADS)
def test_it_drafts_the_same(acting_model: OpenVLA, kind: type[ReadingHead]) -> None:
    wide = widened(acting_model, SIZES)
    network = random_network(acting_model, kind.name)
    small_head = kind(network, ActionRows.of(acting_model))
    wide_head = kind(widened_head(network, wide.config.language), ActionRows.of(wide))
    generator = torch.Generator().manual_seed(7)
    embeddings, features = torch.randn(2, 2, 12, acting_model.config.language.width, generator=generator)
    lengths, counts = torch.tensor([12, 9]), torch.tensor([2, 3])
    bins = torch.randint(0, 256, (2, 5), generator=generator)
    decided = torch.randn(2, 5, acting_model.config.language.width, generator=generator)
    chances = []
    for head, times in ((small_head, 1), (wide_head, 3)):
        head.read(embeddings.tile(times), features.tile(times), lengths)
        chances.append(head.draft(bins, decided.tile(times), counts, 2))
    assert chances[0].max() > 2 * chances[0][chances[0] > 0].min(), "a head without opinions would prove little"
    torch.testing.assert_close(chances[1], chances[0], atol=1e-5, rtol=1e-3)
    pixels = torch.randn(2, 6, 224, 224, generator=generator)
    assert decoded(wide, wide_head, pixels) == decoded(acting_model, small_head, pixels)


def test_drafters_beside_a_checkpoint_are_widened_with_it(
    acting_checkpoint: Path, acting_model: OpenVLA, tmp_path: Path
) -> None:
    source, output = tmp_path / "small", tmp_path / "wide"
    source.mkdir()
    for file in acting_checkpoint.iterdir():
        (source / file.name).symlink_to(file)
    save_head(random_network(acting_model, "parallel"), source / "drafters" / "parallel", torch.float32)
    (source / "drafters" / "draft-vla").mkdir()
    (source / "drafters" / "draft-vla" / "config.json").write_text("{}")
    widen_checkpoint(source, output, TargetSizes(text_width=288), torch.float32)
    wide = load_checkpoint(output, torch.device("cpu"), torch.float32)
    assert load_head(output / "drafters" / "parallel", wide, "parallel").config.layer.width == 288
    assert json.loads((output / "drafters" / "draft-vla" / "config.json").read_text()) == {}


def test_a_head_of_another_target_is_refused(acting_model: OpenVLA, tmp_path: Path) -> None:
    other = replace(acting_model.config.language, layers=1, width=2 * acting_model.config.language.width)
    save_head(HeadNetwork(HeadConfig("eagle", other)), tmp_path / "eagle")
    wider = replace(other, width=2 * other.width)
    with pytest.raises(CheckpointError, match="width"):
        write_widened_drafters({"eagle": tmp_path / "eagle"}, acting_model, wider, tmp_path / "wide")
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        write_widened_drafters({"eagle": tmp_path / "none"}, acting_model, wider, tmp_path / "wide")


def test_a_head_that_is_wide_already_stays_as_it_is(acting_model: OpenVLA, tmp_path: Path) -> None:
    wide = widened(acting_model, SIZES)
    trained = random_network(wide, "eagle")
    save_head(trained, tmp_path / "eagle", torch.float32)
    folders = write_widened_drafters(
        {"eagle": tmp_path / "eagle"}, acting_model, wide.config.language, tmp_path / "wide"
    )
    loaded = load_head(folders["eagle"], wide, "eagle").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained.state_dict().items())


def test_drafters_trained_for_the_wide_target_come_before_those_to_widen(tmp_path: Path) -> None:
    for name in ("eagle", "eagle-7b", "parallel", "draft-vla-7b"):
        (tmp_path / "drafters" / name).mkdir(parents=True)
    given = {"parallel": Path("elsewhere")}
    assert drafters_for_wide(tmp_path, given) == {
        "eagle": tmp_path / "drafters" / "eagle-7b",
        "draft-vla": tmp_path / "drafters" / "draft-vla-7b",
        "parallel": Path("elsewhere"),
    }
    beside = {name: tmp_path / "drafters" / name for name in ("eagle", "parallel")}
    shorter = replace(OpenVLAConfig(), maximum_tokens=512)
    assert drafters_beside(tmp_path, shorter) == beside, "another shape has nothing of 7B's"
    assert trained_drafters(tmp_path, {}) == ["eagle", "parallel"], "a small target has nothing of the wide one's"
    assert DrafterTrainingConfig("target", "demos", "eagle", shape="7b").folder_name == "eagle-7b"
    assert DrafterTrainingConfig("target", "demos", "eagle").folder_name == "eagle"
