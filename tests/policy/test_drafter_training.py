"""Training drafters in small: they learn by heart what a target does on a few frames, save, resume and serve."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
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
from policy.training.episode_choice import held_out_names
from policy.training.episode_reader import EpisodeReader, FrameSource, SizedEpisode
from policy.training.frame_library import FrameLibrary, load_libraries
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


@pytest.mark.parametrize("kind", ["eagle", "draft-vla"])
def test_stopping_before_the_first_step_leaves_no_drafter(config: DrafterTrainingConfig, kind: str) -> None:
    training = DrafterTraining(replace(config, kind=kind), lambda line: None)
    training.stopping = True
    training.run()
    assert training.progress == 0
    assert not training.output.exists()
    assert not training.metrics_file.exists()


def test_repeating_a_finished_command_changes_nothing(config: DrafterTrainingConfig) -> None:
    first = DrafterTraining(replace(config, max_steps=2), lambda line: None)
    first.run()
    files = {path: path.read_bytes() for path in (first.metrics_file, first.output / "model.safetensors")}
    again = DrafterTraining(replace(config, max_steps=2), lambda line: None)
    assert again.run().length >= 1
    assert {path: path.read_bytes() for path in files} == files


def test_a_stopped_training_saves(config: DrafterTrainingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    training = DrafterTraining(config, lambda line: None)
    learn = training._learn

    def learn_once() -> dict[str, torch.Tensor]:
        training.stopping = True
        return learn()

    monkeypatch.setattr(training, "_learn", learn_once)
    training.run()
    assert (training.output / "model.safetensors").is_file()
    assert training.step == 1


def change_weights(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    name = "language_model.lm_head.weight"
    save_file(weights | {name: weights[name].flip(0).contiguous()}, checkpoint / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"held_out_every": 3}, "held_out_every was 2 and is 3"),
        ({"image_path": "processor"}, "image_path was libero and is processor"),
        ({"kind": "parallel"}, "kind was draft-vla and is parallel"),
        ({"network": replace(TINY, text_mlp=86)}, r"another training: network.text_mlp was 172 and is 86; start anew"),
    ],
)
def test_going_on_with_something_else_is_refused(config: DrafterTrainingConfig, changes: dict, complaint: str) -> None:
    config = replace(config, kind="draft-vla", max_steps=1)
    DrafterTraining(config, lambda line: None).run()
    with pytest.raises(ValueError, match=complaint):
        DrafterTraining(replace(config, **changes), lambda line: None)
    assert DrafterTraining(replace(config, **changes, resume=False), lambda line: None).step == 0


def test_going_on_with_another_target_is_refused(config: DrafterTrainingConfig, tmp_path: Path) -> None:
    target = Path(shutil.copytree(config.target, tmp_path / "target"))
    config = replace(config, target=str(target), kind="draft-vla", max_steps=1)
    first = DrafterTraining(config, lambda line: None)
    first.run()
    assert (first.training.known >= 0).all()
    change_weights(target)
    with pytest.raises(
        ValueError, match=r"the target's hash was .*; start anew with `--resume false`, or give another"
    ):
        DrafterTraining(config, lambda line: None)
    # Where it was stopped before its first step there are but actions, and they are asked for anew.
    (first.folder / "state.pt").unlink()
    assert (DrafterTraining(config, lambda line: None).training.known < 0).all()


def test_kept_actions_are_those_of_the_same_episode(config: DrafterTrainingConfig, tmp_path: Path) -> None:
    config = replace(config, kind="draft-vla", max_steps=1)
    first = DrafterTraining(config, lambda line: None)
    first.run()
    second = DrafterTraining(replace(config, frames="test_drafter_training:told_otherwise"), lambda line: None)
    digests = first.training.library.rows_by_digest.keys() & second.training.library.rows_by_digest.keys()
    assert len(digests) == len(first.training.library.rows_by_digest) - 1, "one has another instruction now"
    known = torch.zeros(len(second.training.library), dtype=torch.bool)
    for digest in digests:
        known[second.training.library.rows_by_digest[digest]] = True
    assert torch.equal((second.training.known >= 0).all(dim=1), known)


def told_otherwise() -> Iterator[CameraEpisode]:
    """As `episodes`, but for the instruction of the first that is trained on."""
    changed = sorted({"a", "b", "c", "d"} - held_out_names("abcd", 2))[0]
    for name in ("a", "b", "c", "d"):
        yield CameraEpisode(name, INSTRUCTIONS[name == changed], camera_images(0))


def test_what_was_learned_is_not_held_out_later(config: DrafterTrainingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = DrafterTraining(replace(config, max_steps=1), lambda line: None)
    first.run()
    learned = {name for name in "abcd" if name not in held_out_names("abcd", 2)}
    monkeypatch.setattr("policy.training.frame_library.held_out_names", lambda names, every: learned)
    with pytest.raises(ValueError, match=f"has learned from {len(learned)} of the episodes that are now held out"):
        DrafterTraining(config, lambda line: None)


def test_a_few_episodes_are_always_split() -> None:
    for names in (["ep0", "ep1", "ep2", "ep3"], ["ep0", "ep1"], [f"{number:06d}" for number in range(7)]):
        for every in (2, 20, 1000):
            assert 0 < len(held_out_names(names, every)) < len(names)
    assert held_out_names(["alone"], 2) == frozenset()
    numbers = [f"libero_object_task{task:02d}_seed{seed}.npz" for task in range(10) for seed in range(100)]
    assert len(held_out_names(numbers, 20)) == pytest.approx(50, abs=20)
    every_task = {name[:20] for name in held_out_names(numbers, 10)}
    assert len(every_task) == 10
    assert held_out_names(numbers[:500], 20) == held_out_names(numbers, 20) & set(numbers[:500])


@torch.inference_mode()
def test_the_teacher_says_what_plain_decoding_does(acting_checkpoint: Path) -> None:
    model = load_checkpoint(acting_checkpoint, dtype=torch.float32)
    settings = PreprocessorSettings.load(acting_checkpoint)
    teacher = Teacher(model, Prompter(acting_checkpoint), settings)
    reader = EpisodeReader(FrameSource("test_drafter_training:episodes"), "libero", settings, 1)
    library, _ = load_libraries(reader, 100, 2, print)
    pixels = teacher.pixels(library.frames(torch.arange(3)))
    for image, own in zip(camera_images(0), pixels, strict=True):
        np.testing.assert_allclose(own.numpy(), pixel_values(image, "libero", settings), atol=1e-6)
    rows = torch.tensor([2, 0])
    prompts = teacher.prompts(library.frames(rows), library.texts(rows))
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
    frames = np.zeros((2, 224, 224, 3), np.uint8)
    parts = [SizedEpisode(str(number), INSTRUCTIONS[number], frames) for number in (0, 1)]
    book = ActionBook(FrameLibrary(parts), teacher)
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
