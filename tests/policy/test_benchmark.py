"""The benchmark: what it counts, what it compares, and one run of everything on the CPU."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from policy.benchmark.control_steps import Steps, compared, row_of
from policy.benchmark.cost import Machine, StepCost, Work, layer_weights
from policy.benchmark.machine import Workload, measure_machine
from policy.benchmark.passes import ARRANGEMENTS, measure_passes
from policy.benchmark.transformers_decoder import TransformersDecoder
from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.physical import ActionUnits
from policy.decoding.prompt_batch import PromptBatch
from policy.decoding.stopwatch import Stopwatch
from policy.openvla.action_tokens import ActionStatistics
from policy.openvla.config import OpenVLAConfig
from policy.openvla.model import OpenVLA
from policy.results import REPOSITORY

CPU = torch.device("cpu")
MACHINE = Machine(bytes_per_second=4e12, operations_per_second=800e12, float8_operations_per_second=1600e12)


def test_cost_of_the_published_sizes() -> None:
    """Kim et al. 2024: 7B parameters; the layers of Llama-2-7B without embeddings are 6.48e9 numbers."""
    cost = StepCost(OpenVLAConfig(), prompt=290)
    assert 32 * layer_weights(cost.config.language) == 6_476_005_376
    assert cost.language(290).operations == pytest.approx(2 * 290 * 6.476e9, rel=0.02)
    assert cost.language(1).bytes == pytest.approx(13.2e9, rel=0.01)
    vision_weights = 23 * 12 * 1024**2 + 26 * (4 * 1152**2 + 2 * 1152 * 4304)
    projector_weights = 2176 * 8704 + 8704 * 4096 + 4096**2
    attention = 4 * 256**2 * (23 * 1024 + 26 * 1152)
    expected = 2 * 256 * (vision_weights + projector_weights) + attention
    assert cost.vision().operations == pytest.approx(expected, rel=0.02)
    assert StepCost(cost.config, 290, precision="fp8").language(1).bytes == pytest.approx(6.74e9, rel=0.01)


def test_a_pass_takes_the_longer_of_computing_and_reading() -> None:
    assert MACHINE.milliseconds(Work(8e12, 4e9)) == 10
    assert MACHINE.milliseconds(Work(8e9, 4e10)) == 10
    assert MACHINE.milliseconds(Work(8e12, 4e9), float8=True) == 5
    assert Machine(4e12, 800e12).milliseconds(Work(8e12, 4e9), float8=True) == 10
    cost = StepCost(OpenVLAConfig(), prompt=290)
    further = MACHINE.milliseconds(cost.language(1))
    assert cost.bound_ms(MACHINE, 7) - cost.bound_ms(MACHINE, 2.5) == pytest.approx(4.5 * further)
    assert cost.bound_ms(MACHINE, 1) > MACHINE.milliseconds(cost.language(290)) > further


def test_rates_of_this_machine_are_positive_and_finite() -> None:
    machine = measure_machine(CPU, torch.float32, Workload(1 << 20, 64))
    assert 1e6 < machine.bytes_per_second < 1e14
    assert 1e6 < machine.operations_per_second < 1e16
    assert machine.float8_operations_per_second is None


@torch.inference_mode()
def test_the_transformers_baseline_speaks_our_tokens(acting_model: OpenVLA) -> None:
    features = acting_model.image_features(torch.randn(1, 6, 224, 224, generator=torch.Generator().manual_seed(2)))
    prompts = PromptBatch.embed(acting_model, [[1, 4, 5, 9]], features)
    want, _ = AutoregressiveDecoder(acting_model).decode(prompts, ["a"], Stopwatch(CPU))
    got, traces = TransformersDecoder(acting_model).decode(prompts, ["a"], Stopwatch(CPU))
    assert got.tolist() == want.tolist()
    assert len(set(got[0].tolist())) > 1
    assert traces[0].target_passes == 7
    with pytest.raises(ValueError, match="one session at a time, got 2"):
        TransformersDecoder(acting_model).decode(prompts, ["a", "b"], Stopwatch(CPU))


def steps(name: str, tokens: list[list[int]], milliseconds: list[float], passes: list[int]) -> Steps:
    stages = [{"vision": 1.0, "decode": each - 1.0} for each in milliseconds]
    return Steps(name, milliseconds, stages, passes, tokens, start_s=2.0, memory_gb=None)


def test_a_row_has_percentiles_stages_and_distance_from_the_bound(small_model: OpenVLA) -> None:
    cost = StepCost(small_model.config, prompt=270)
    row = row_of(steps("a", [[0] * 7] * 4, [10.0, 20.0, 30.0, 40.0], [1, 1, 2, 2]), MACHINE, cost)
    assert (row["mean_ms"], row["p50_ms"], row["max_ms"], row["passes"]) == (25, 25, 40, 1.5)
    assert (row["vision_ms"], row["decode_ms"], row["prefill_ms"]) == (1, 24, 0)
    assert row["percent_of_bound"] == pytest.approx(100 * cost.bound_ms(MACHINE, 1.5) / 25)


def test_deviation_is_that_of_the_worst_axis() -> None:
    units = ActionUnits.from_statistics(ActionStatistics(-np.ones(7), np.ones(7), np.array([True] * 6 + [False])))
    plain = steps("plain", [[284] * 7, [284] * 7], [1.0, 1.0], [7, 7])
    other = steps("other", [[284] * 7, [281, 283, 284, 284, 284, 286, 284]], [1.0, 1.0], [1, 1])
    found = compared(other, plain, units, action_vocabulary=385)
    assert found["token_agreement"] == pytest.approx(11 / 14)
    assert found["action_agreement"] == 0.5
    assert found["deviation_mm"] == pytest.approx(3 / 2 * units.bin_sizes[0])
    assert found["deviation_mrad"] == pytest.approx(2 / 2 * units.bin_sizes[5])


def test_passes_alone_are_timed_for_every_arrangement_that_runs_here(small_config: OpenVLAConfig, monkeypatch) -> None:
    monkeypatch.setattr("policy.benchmark.passes.median_ms", lambda work, device, in_a_row: float(work() is not None))
    for name, (plan, _) in ARRANGEMENTS.items():
        if plan.compiled:  # takes a minute; tests/policy/test_acceleration.py traces it
            continue
        row = measure_passes(small_config, 264, name, MACHINE, CPU, torch.float32)
        if plan.attention == "cudnn":
            assert "kernel" in row["error"]
        else:
            assert row["prefill_tree_ms"] == row["one_token_ms"] == row["vision_ms"] == row["action_head_ms"] == 1
            assert 0 < row["one_token_percent_of_bound"] <= row["prefill_percent_of_bound"] < 100


def test_one_command_measures_resumes_and_reports(
    acting_checkpoint: Path, demonstrations: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    script = str(REPOSITORY / "scripts" / "benchmark.py")

    def run(*options: str) -> tuple[int, str]:
        command = [script, str(demonstrations), "--checkpoint", str(acting_checkpoint), "--device", "cpu"]
        command += ["--dtype", "float32", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "speed.json")]
        monkeypatch.setattr(sys, "argv", [*command, *options])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name="__main__")
        return int(ended.value.code or 0), capsys.readouterr().out

    assert run("--rows", "graph autoregressive", "exact")[0] == 0
    notes = (tmp_path / "runs" / "exact.json").read_text()
    code, output = run("--rows", "transformers eager", "exact", "--passes", "joined")
    assert code == 0
    assert (tmp_path / "runs" / "exact.json").read_text() == notes, "what is there is not measured again"
    assert "measuring exact" not in output
    content = json.loads((tmp_path / "speed.json").read_text())
    steps, passes = content["rows"][:3], content["rows"][3:]
    assert [row["row"] for row in steps] == ["transformers eager", "graph autoregressive", "exact"]
    assert all(row["token_agreement"] == 1 and row["steps"] == 3 for row in steps)
    assert steps[0]["speedup_over_eager"] == 1
    assert [row["arrangement"] for row in passes] == ["joined"]
    assert passes[0]["prefill_ms"] > 0
    headline = content["headline"]
    assert headline["eager_ms"] > headline["bound_ar_ms"] > headline["bound_one_pass_ms"] > 0
    assert headline["relaxed_mean_ms"] is None
    assert (tmp_path / "speed.png").stat().st_size > 1000
    assert "measuring relaxed" not in run("--rows", "relaxed", "--time-limit", "0")[1]
    code, output = run("--rows", "fp8 relaxed", "--attention", "cudnn")
    assert code == 1
    assert "fp8 relaxed failed" in output
    assert run("--rows", "faster")[0] == 2
