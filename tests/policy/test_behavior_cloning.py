"""A whole training run in small: demonstrations in, a loadable policy out, and a second run that goes on from it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_demonstrations import INSTRUCTIONS, decode_in_threads, record

from policy.openvla.checkpoint import load_checkpoint
from policy.training.behavior_cloning import BehaviorCloning
from policy.training.config import NetworkSize, TrainingConfig, UnknownInstructionError
from policy.training.frames import DecodedEpisode
from policy.training.objective import ObjectiveConfig

TINY = NetworkSize(
    dinov2_width=64, dinov2_blocks=1, dinov2_mlp=64, siglip_width=72, siglip_blocks=1, siglip_mlp=64,
    text_width=128, text_layers=1, text_mlp=172,
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingConfig:
    decode_in_threads(monkeypatch)
    for seed in range(6):
        record(tmp_path / "demos", 1000 + seed, INSTRUCTIONS[seed % 2])
    (tmp_path / "instructions.txt").write_text("\n".join(INSTRUCTIONS) + "\n")
    return TrainingConfig(
        demonstrations=[tmp_path / "demos"],
        output=tmp_path / "run",
        instructions_file=tmp_path / "instructions.txt",
        max_steps=3,
        batch_size=4,
        warmup_steps=1,
        capacity=100,
        validation_capacity=10,
        held_out_every=3,
        start_episodes=2,
        log_seconds=0,
        decoders=1,
        device="cpu",
        compile=False,
        network=TINY,
    )


def replaced(config: TrainingConfig, **changes: object) -> TrainingConfig:
    values = {name: getattr(config, name) for name in config.__dataclass_fields__}
    return TrainingConfig(**{**values, **changes})


def test_a_run_trains_saves_and_resumes(config: TrainingConfig):
    run = BehaviorCloning(config)
    before = {name: value.clone() for name, value in run.model.named_parameters()}
    directory = run.run()
    moved = {name for name, value in run.model.named_parameters() if not torch.equal(value, before[name])}
    assert "network.language_model.lm_head.weight" in moved
    assert "network.vision_backbone.featurizer.blocks.0.attn.qkv.weight" in moved
    assert not any("blocks.1." in name for name in moved), "the layout's last block is stored, never trained"

    network = load_checkpoint(directory, dtype=torch.float32)
    averaged = run.average.module.network.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, averaged[name].to(torch.bfloat16).float()), name
    statistics = json.loads((directory / "dataset_statistics.json").read_text())
    assert statistics["libero"]["action"]["mask"] == [True] * 6 + [False]
    assert json.loads((directory / "training_config.json").read_text())["steps"] == 3
    records = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 3

    resumed = BehaviorCloning(replaced(config, max_steps=5))
    assert resumed.step == 3
    assert np.array_equal(resumed.statistics.q01, run.statistics.q01)
    resumed.run()
    assert resumed.step == 5


def test_training_waits_until_there_are_frames_enough(config: TrainingConfig):
    run = BehaviorCloning(replaced(config, max_steps=1000, minutes=0.2, samples_per_frame=0.5, refresh_seconds=0.2))
    waited_at: list[tuple[int, int]] = []  # steps so far, and frames that there were
    given = run._waits_for_frames

    def waits() -> bool:
        waited = given()
        if waited and not waited_at:
            waited_at.append((run.step, run.store.taken_in))
            for seed in range(6):
                record(config.demonstrations[0], 2000 + seed, INSTRUCTIONS[0])
        return waited

    run._waits_for_frames = waits  # type: ignore[method-assign]
    run.run()
    ((step, first),) = waited_at
    assert step == int(0.5 * first / config.batch_size)
    assert run.store.taken_in > first
    assert run.step == int(0.5 * run.store.taken_in / config.batch_size) > step
    assert run.progress >= 1, "the schedule goes on while it waits"


def test_late_in_a_run_the_policy_is_taught_its_own_choice(config: TrainingConfig):
    run = BehaviorCloning(replaced(config, max_steps=4, objective=ObjectiveConfig(own_choice_from=0.5)))
    asked = []
    given = run._own_choice
    run._own_choice = lambda *batch: asked.append((run.step, given(*batch))) or asked[-1][1]  # type: ignore[method-assign]
    run.run()
    assert [choice is None for _, choice in asked] == [True, True, False, False]
    places = asked[-1][1]
    assert places.shape == (4, 6)
    assert ((places >= 1) & (places <= 256)).all()
    assert not any(parameter.requires_grad for parameter in run._chooser.parameters())


def test_blocks_are_compiled_once_a_kind(config: TrainingConfig, monkeypatch: pytest.MonkeyPatch):
    """Traced by the compiler's front end and run without its code generator."""
    model = BehaviorCloning(config).model
    given = torch.randn(2, 6, 224, 224), torch.ones(2, 20, dtype=torch.int64), torch.tensor([10, 12])
    want = model(*given)
    traces = []

    def run(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> object:
        traces.append(graph)
        return graph.forward

    compile_plainly = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, dynamic: compile_plainly(self, backend=run, dynamic=dynamic)
    )
    torch._dynamo.reset()
    model.compile_blocks()
    for got, expected in zip(model(*given), want, strict=True):
        torch.testing.assert_close(got, expected)
    assert len(traces) == 3, "two kinds of tower and the language model"
    torch._dynamo.reset()


def test_a_run_can_start_from_a_checkpoint(config: TrainingConfig, tmp_path: Path):
    first = BehaviorCloning(config)
    directory = first.run()
    second = BehaviorCloning(replaced(config, output=tmp_path / "tuned", initialize_from=directory))
    assert second.step == 0
    assert np.array_equal(second.statistics.q01, first.statistics.q01)
    name = "language_model.lm_head.weight"
    assert torch.equal(
        second.averaged_network.state_dict()[name], load_checkpoint(directory).state_dict()[name].float()
    )
    second.run()

    (tmp_path / "other.txt").write_text("\n".join(f"word{i}" for i in range(200)))
    with pytest.raises(ValueError, match="vocabulary of"):
        BehaviorCloning(
            replaced(config, output=tmp_path / "x", initialize_from=directory, instructions_file=tmp_path / "other.txt")
        )


def test_prompts_carry_the_action_tokens_behind_them(config: TrainingConfig):
    run = BehaviorCloning(config)
    task = torch.tensor([0, 1])
    actions = torch.arange(12).view(2, 6) + 100
    ids, lengths = run.prompts.rows(task, actions)
    for row, text in enumerate(INSTRUCTIONS):
        prompt = run.prompter.token_ids(text)
        assert lengths[row] == len(prompt)
        assert ids[row, : len(prompt)].tolist() == prompt
        assert ids[row, len(prompt) : len(prompt) + 6].tolist() == actions[row].tolist()
    run.store.close()
    run.validation.close()


def test_no_demonstrations_is_said_plainly(config: TrainingConfig, tmp_path: Path):
    with pytest.raises(TimeoutError, match="0 training episodes"):
        BehaviorCloning(replaced(config, demonstrations=[tmp_path / "none"], wait_seconds=0.1))


def test_what_could_not_be_read_is_named_where_there_is_nothing_else(config: TrainingConfig, tmp_path: Path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "one.npz").write_bytes(b"PK")
    with pytest.raises(TimeoutError, match=r"1 could not be read, the first of them: .*one\.npz"):
        BehaviorCloning(replaced(config, demonstrations=[tmp_path / "broken"], wait_seconds=0.5, held_out_every=0))


def test_an_instruction_that_is_not_given_is_named(config: TrainingConfig):
    path = record(config.demonstrations[0], 999, "close the drawer")
    complaint = (
        rf"{path.name} has the instruction 'close the drawer', which is not a line of .*instructions\.txt; add it"
    )
    with pytest.raises(UnknownInstructionError, match=complaint):
        BehaviorCloning(replaced(config, held_out_every=0, start_episodes=7))


def test_a_run_that_meets_such_an_instruction_saves_its_state(config: TrainingConfig, monkeypatch: pytest.MonkeyPatch):
    run = BehaviorCloning(replaced(config, max_steps=1000, refresh_seconds=0.0))
    episode = DecodedEpisode(Path("late.npz"), "close the drawer", *[np.zeros(0)] * 3)
    monkeypatch.setattr(run.store, "refresh", lambda: run.step < 2 or run.store._append(episode))
    with pytest.raises(UnknownInstructionError, match=r"late\.npz"):
        run.run()
    resumed = BehaviorCloning(config)
    assert resumed.step == run.step == 2
    resumed.run()


@pytest.mark.parametrize("key", ["mine", "bridge_orig", ""])
def test_statistics_under_which_a_server_would_not_turn_frames_are_refused(config: TrainingConfig, key: str):
    with pytest.raises(ValueError, match=rf"must begin with 'libero', got '{key}'.*call it 'libero_{key}'"):
        replaced(config, statistics_key=key)
    assert replaced(config, statistics_key="libero_mine").statistics_key == "libero_mine"
