"""A draft model sees for itself, drafts before the target does, and never changes exact tokens."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_openvla import INSTRUCTIONS, statistics_json
from torch import Tensor

from policy.decoding.acceptance.exact import Exact
from policy.decoding.capture import Recording
from policy.decoding.config import DecodingConfig
from policy.decoding.prompt_batch import PromptBatch, Sight
from policy.decoding.speculative import SpeculativeDecoder
from policy.decoding.stopwatch import Stopwatch
from policy.drafting.draft_vla import DraftVLA, check_same_bins
from policy.drafting.placement import Placement
from policy.drafting.registry import DrafterMaterial, trained_folder
from policy.openvla.action_tokens import load_statistics, select_statistics
from policy.openvla.checkpoint import CheckpointError, save_checkpoint
from policy.openvla.model import OpenVLA
from policy.openvla.prompt import Prompter
from policy.runtime import Policy
from policy.types import Observation


class RunAgain:
    """Records as a graph does: the function runs again on its own buffers."""

    recorded = 0

    def __call__(self, function: Callable[[], Tensor], inputs: tuple[Tensor, ...]) -> Recording:
        self.recorded += 1
        output = function()
        return Recording(inputs, output, lambda: output.copy_(function()))


@torch.inference_mode()
@pytest.mark.parametrize("record", [None, RunAgain()])
def test_a_model_that_drafts_for_itself_needs_one_pass(
    acting_model: OpenVLA, acting_checkpoint: Path, record: RunAgain | None
) -> None:
    rule, prompter = Exact(), Prompter(acting_checkpoint)
    model = copy.deepcopy(acting_model)
    model.language_model.lm_head.weight *= 30.0  # as sure of itself as a trained one
    drafter = DraftVLA(model, prompter, record)
    decoder = SpeculativeDecoder(acting_model, rule, (), Placement(6, 0.0, rule.reach), seeing=[drafter])
    pixels = torch.randn(2, 6, 224, 224, generator=torch.Generator().manual_seed(0))
    prompts = [prompter.token_ids(text) for text in INSTRUCTIONS]
    features = acting_model.image_features(pixels)
    sight = Sight(pixels, tuple(INSTRUCTIONS))
    decoder.rehearse(PromptBatch.embed(acting_model, prompts, features))
    rehearsed = record.recorded if record else 0
    for begun in (True, False):  # whether the drafter was told before or is asked when the prompt is there
        if begun:
            decoder.look(sight)
        batch = PromptBatch.embed(acting_model, prompts, features, sight)
        _, traces = decoder.decode(batch, ["a", "b"], Stopwatch(torch.device("cpu")))
        assert [trace.target_passes for trace in traces] == [1, 1]
        assert set(traces[0].sources[:6]) == {"draft-vla"}
    assert rehearsed == (record.recorded if record else 0)
    with pytest.raises(ValueError, match="draft-vla must see the frames"):
        decoder.decode(PromptBatch.embed(acting_model, prompts, features), ["a", "b"], Stopwatch(torch.device("cpu")))


@pytest.fixture
def other_model(acting_model: OpenVLA) -> OpenVLA:
    """Narrower, with random weights of its own and another vocabulary size."""
    torch.manual_seed(11)
    sizes = acting_model.config
    language = replace(sizes.language, width=64, mlp=96, layers=1, heads=2, key_value_heads=2)
    return OpenVLA.from_config(replace(sizes, language=language)).eval()


def test_beside_its_target_in_a_policy(
    acting_checkpoint: Path, other_model: OpenVLA, tokenizer_directory: Path, tmp_path: Path
) -> None:
    folder = trained_folder(tmp_path, "draft-vla")
    save_checkpoint(other_model, folder, tokenizer_directory=tokenizer_directory, statistics=statistics_json())
    config = DecodingConfig("drafted", drafters=("previous", "draft-vla"), weights={"draft-vla": folder})
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    observations = [Observation(image, text) for text in INSTRUCTIONS]
    plain = Policy.load(acting_checkpoint, device="cpu", dtype="float32")
    drafted = Policy.load(acting_checkpoint, device="cpu", dtype="float32", decoding=config)
    for _ in range(2):
        expected = plain.act_batch(observations, ["a", "b"])
        for action, wanted in zip(drafted.act_batch(observations, ["a", "b"]), expected, strict=True):
            assert action.tokens.tolist() == wanted.tokens.tolist()


def test_an_untrained_drafter_and_other_bins_are_refused(
    acting_model: OpenVLA, other_model: OpenVLA, tokenizer_directory: Path, tmp_path: Path
) -> None:
    statistics = select_statistics({"x": _statistics(tmp_path, 1.0)}, None)
    material = DrafterMaterial(acting_model, statistics, tmp_path)
    config = DecodingConfig("drafted", drafters=("draft-vla",))
    with pytest.raises(ValueError, match=r"no trained drafter 'draft-vla' in .*scripts/train_drafter\.py --kind"):
        config.build(material)
    folder = trained_folder(tmp_path, "draft-vla")
    save_checkpoint(other_model, folder, tokenizer_directory=tokenizer_directory, statistics=statistics_json())
    config.build(material)
    check_same_bins(folder, _statistics(tmp_path, 1.0 + 1e-6))
    with pytest.raises(CheckpointError, match="its bins mean other actions"):
        check_same_bins(folder, _statistics(tmp_path, 1.01))


def _statistics(directory: Path, scale: float):
    content = statistics_json()
    for entry in content.values():
        for name in ("q01", "q99"):
            entry["action"][name] = [scale * value for value in entry["action"][name]]
    (directory / "dataset_statistics.json").write_text(json.dumps(content))
    return next(iter(load_statistics(directory).values()))


def test_claims_say_where_a_tree_grows_and_are_believed_as_far_as_they_were_right() -> None:
    claims = np.zeros((6, 256), np.float32)
    claims[:, 10], claims[:, 99] = 0.9, 0.1
    claims[1, 10], claims[1, 99] = 0.5, 0.5
    placement = Placement(nodes=64, confidence=0.2, reach=(0,) * 7)
    draft = placement.plan(0, {}, {"net": claims})
    paths = {tuple(_path(draft, node)) for node in range(len(draft.tokens))}
    assert (10, 99) in paths, "two alternatives where it is not sure"
    assert (99,) not in paths, "improbable ones get no node"
    for _ in range(200):  # always wrong, whatever it claims
        placement.learn({}, np.full(7, 200), {"net": claims})
    assert placement.plan(0, {}, {"net": claims}).tokens == ()
    modest = np.zeros((6, 256), np.float32)
    modest[:, 9:12] = 0.3, 0.4, 0.3
    again = Placement(nodes=64, confidence=0.2, reach=(0,) * 7)
    assert again.plan(0, {}, {"net": modest}).tokens == (10, 9, 11), "each of them, and nothing behind"
    for _ in range(200):
        again.learn({}, np.full(7, 10), {"net": modest})
    assert again.plan(0, {}, {"net": modest}).tokens == (10,) * 6
    silent = np.zeros((6, 256), np.float32)
    assert again.plan(0, {}, {"net": silent}).tokens == ()


def _path(draft, node: int) -> list[int]:
    tokens: list[int] = []
    while node != -1:
        tokens.append(draft.tokens[node])
        node = draft.parents[node]
    return tokens[::-1]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"head": "wise", "tail": "tree"}, "no head 'wise'; choose one of eagle, parallel"),
        ({"head": "eagle", "tail": "jacobi"}, "a head needs the tail"),
        ({"tail": "head"}, 'tail "head" one of eagle, parallel'),
        ({"weights": {"eagle": "somewhere"}}, "weights are given for eagle"),
    ],
)
def test_heads_and_tails_that_do_not_fit(changes: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        DecodingConfig("odd", **changes)


def test_a_head_configured_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("drafters: [previous, draft-vla]\nhead: eagle\nweights: {eagle: runs/eagle, draft-vla: runs/vla}\n")
    config = DecodingConfig.load(path)
    assert (config.head, dict(config.weights)["draft-vla"]) == ("eagle", Path("runs/vla"))
