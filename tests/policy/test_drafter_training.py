"""Training drafters in small: they learn by heart what a target does on a few frames, save, resume and serve."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_openvla import INSTRUCTIONS

from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.config import DecodingConfig
from policy.drafting.head_checkpoint import load_head
from policy.openvla.checkpoint import load_checkpoint
from policy.openvla.images import PreprocessorSettings, pixel_values
from policy.openvla.prompt import Prompter
from policy.runtime import Policy
from policy.training.acceptance_score import AcceptanceScore, average
from policy.training.camera_episode import CameraEpisode
from policy.training.config import NetworkSize
from policy.training.drafter_config import DrafterTrainingConfig
from policy.training.drafter_training import DrafterTraining
from policy.training.frame_library import FrameLibrary, FrameSource, load_libraries, read_episodes
from policy.training.teacher import ActionBook, Teacher
from policy.types import Observation

TINY = NetworkSize(
    dinov2_width=64, dinov2_blocks=1, dinov2_mlp=64, siglip_width=72, siglip_blocks=1, siglip_mlp=64,
    text_width=128, text_layers=1, text_mlp=172,
)  # fmt: skip


def camera_images(seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (3, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2))


def episodes() -> Iterator[CameraEpisode]:
    """An adapter: the same three moments under two names, one of which is held out."""
    for name in ("a", "b", "c", "d"):
        yield CameraEpisode(name, INSTRUCTIONS[0], camera_images(0))


@pytest.fixture
def config(acting_checkpoint: Path, tmp_path: Path) -> DrafterTrainingConfig:
    return DrafterTrainingConfig(
        target=str(acting_checkpoint),
        frames="test_drafter_training:episodes",
        kind="eagle",
        output=tmp_path / "drafter",
        max_steps=60,
        held_out_every=2,
        batch_size=4,
        learning_rate=3e-3,
        warmup_steps=5,
        average_decay=0.5,
        noise=0.0,
        log_seconds=1e9,
        decoders=1,
        device="cpu",
        dtype="float32",
        network=TINY,
    )


@pytest.mark.parametrize("kind", ["eagle", "parallel", "draft-vla"])
def test_a_drafter_learns_its_target_by_heart_and_saves_passes(
    config: DrafterTrainingConfig, acting_checkpoint: Path, kind: str
) -> None:
    training = DrafterTraining(replace(config, kind=kind), lambda line: None)
    before = training.validate()
    after = training.run()
    assert after.length > before.length + 2, "the frames held out are those trained on"
    records = [json.loads(line) for line in training.metrics_file.read_text().splitlines()]
    assert records[-1]["length"] == round(after.length, 3)
    assert records[-1]["step"] == 60

    seeing, drafters = kind == "draft-vla", (kind,) if kind == "draft-vla" else ()
    decoding = DecodingConfig(
        "drafted", drafters=drafters, head=None if seeing else kind, weights={kind: training.output}
    )  # fmt: skip
    plain = Policy.load(acting_checkpoint, device="cpu", dtype="float32")
    drafted = Policy.load(acting_checkpoint, device="cpu", dtype="float32", decoding=decoding)
    passes = []
    for image in camera_images(0) * 2:  # the second time, its claims are believed
        observation = Observation(image, INSTRUCTIONS[0])
        action = drafted.act(observation)
        assert action.tokens.tolist() == plain.act(observation).tokens.tolist()
        passes.append(action.trace.target_passes)
    assert np.mean(passes) < 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["eagle", "parallel", "draft-vla"])
def test_mixed_precision_as_on_a_gpu(
    config: DrafterTrainingConfig, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str
) -> None:
    monkeypatch.setattr(Teacher, "mixed_precision", lambda self: torch.autocast("cpu", torch.bfloat16))
    training = DrafterTraining(replace(config, kind=kind, dtype=dtype, max_steps=2), lambda line: None)
    training.run()
    assert training.step == 2
    assert all(value.isfinite().all() for value in training.network.state_dict().values())


@pytest.mark.parametrize("kind", ["eagle", "draft-vla"])
def test_a_training_cut_short_goes_on(config: DrafterTrainingConfig, kind: str) -> None:
    first = DrafterTraining(replace(config, kind=kind, max_steps=3), lambda line: None)
    first.run()
    lines: list[str] = []
    second = DrafterTraining(replace(config, kind=kind, max_steps=5), lines.append)
    assert "going on from step 3" in lines
    assert torch.equal(second.training.known, first.training.known)
    for name, value in first.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], value), name
    second.run()
    assert second.step == 5
    if kind == "draft-vla":
        load_checkpoint(second.output)
    else:
        load_head(second.output, load_checkpoint(Path(config.target)), kind)
    fresh = DrafterTraining(replace(config, kind=kind, resume=False), lines.append)
    assert fresh.step == 0
    assert not fresh.metrics_file.exists()


def test_a_stopped_training_saves(config: DrafterTrainingConfig) -> None:
    training = DrafterTraining(config, lambda line: None)
    training.stopping = True
    training.run()
    assert (training.output / "model.safetensors").is_file()
    assert training.progress == 0


@torch.inference_mode()
def test_the_teacher_says_what_plain_decoding_does(acting_checkpoint: Path) -> None:
    model = load_checkpoint(acting_checkpoint, dtype=torch.float32)
    settings = PreprocessorSettings.load(acting_checkpoint)
    teacher = Teacher(model, Prompter(acting_checkpoint), settings)
    source = read_episodes(FrameSource("test_drafter_training:episodes"), "libero", settings, 1)
    library, _ = load_libraries(source, 100, 2)
    pixels = teacher.pixels(library.frames[:3])
    for image, own in zip(camera_images(0), pixels, strict=True):
        np.testing.assert_allclose(own.numpy(), pixel_values(image, "libero", settings), atol=1e-6)
    rows = torch.tensor([2, 0])
    prompts = teacher.prompts(library.frames[rows], library.texts(rows))
    steps = list(AutoregressiveDecoder(model).steps(prompts))
    lesson = teacher.lesson(prompts)
    ids = model.config.action_vocabulary - 1 - lesson.bins
    assert torch.equal(ids, torch.stack([step.tokens for step in steps], dim=1))
    torch.testing.assert_close(lesson.features, torch.stack([step.hidden for step in steps], 1), rtol=1e-4, atol=1e-4)
    last = lesson.hidden[torch.arange(2), lesson.lengths - 1]
    torch.testing.assert_close(last, lesson.features[:, 0], rtol=1e-4, atol=1e-4)


def test_actions_are_asked_for_once(acting_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_checkpoint(acting_checkpoint, dtype=torch.float32)
    teacher = Teacher(model, Prompter(acting_checkpoint), PreprocessorSettings.load(acting_checkpoint))
    frames = torch.zeros(4, 224, 224, 3, dtype=torch.uint8)
    book = ActionBook(FrameLibrary(frames, torch.tensor([0, 1, 0, 1]), INSTRUCTIONS), teacher)
    first = book.look_up(torch.tensor([1, 3]))
    monkeypatch.setattr(teacher, "lesson", None)  # to ask again would fail
    assert torch.equal(book.look_up(torch.tensor([3, 1])), first.flip(0))
    with pytest.raises(TypeError):
        book.look_up(torch.tensor([0, 1]))


def test_scores_by_position() -> None:
    bins = torch.tensor([[10, 20, 30, 40, 50, 60, 0]] * 2)
    claims = torch.zeros(2, 6, 256)
    for row, drafted in enumerate(([0, 20, 35, 40, 50, 60], [0, 20, 30, 60, 50, 60])):
        claims[row, torch.arange(6), torch.tensor(drafted)] = 0.5
    score = AcceptanceScore.of(claims, bins, start=1)
    assert score.right == (1.0, 0.5, 0.5, 1.0, 1.0)
    assert score.kept == (1.0, 0.5, 0.0, 0.0, 0.0)
    assert score.kept_relaxed == (1.0, 1.0, 0.5, 0.5, 0.5)
    assert (score.length, score.length_relaxed) == (2.5, 4.5)
    assert score.confidence == (0.5,) * 5
    perfect = replace(score, kept=(1.0,) * 5)
    assert average([(3, score), (1, perfect)]).kept == (1.0, 0.625, 0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kind": "oracle"}, "kind is 'oracle'; it must be one of eagle, parallel, draft-vla"),
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"noise": -0.1}, "noise must not be negative"),
        ({"held_out_every": 1}, "held_out_every must be at least 2"),
        ({"average_decay": 1.0}, "average_decay must lie between 0 and 1"),
    ],
)
def test_options_out_of_range(config: DrafterTrainingConfig, changes: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(config, **changes)


def test_frames_that_are_none(config: DrafterTrainingConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for frames, complaint in (
        (str(tmp_path / "empty"), "has no demonstrations"),
        ("nowhere", "or 'module:function' that yields"),
        ("no_such_module:episodes", "No module named"),
        ("json:episodes", "has no attribute"),
    ):
        with pytest.raises(ValueError, match=complaint):
            DrafterTraining(replace(config, frames=frames))
    with pytest.raises(ValueError, match="both are needed"):
        DrafterTraining(replace(config, capacity=3))
