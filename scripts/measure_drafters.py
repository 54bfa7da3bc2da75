"""Time decodings with different drafters on logged frames, and name the fastest.

    python scripts/measure_drafters.py demos --checkpoint runs/mine --decoding exact draft-vla eagle draft-vla-eagle
    python scripts/measure_drafters.py demos --weights '{"eagle": "runs/eagle"}' --decoding exact eagle

All decodings see every frame one after the other. The first is plain decoding, which the others are compared with.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from policy.acceleration.plan import PRESETS, accelerate, preset
from policy.decoding.capture import GraphRecorder, capture_passes
from policy.decoding.config import DecodingConfig
from policy.decoding.race import Runner, race
from policy.decoding.replay import LoggedEpisode
from policy.drafting.registry import DrafterMaterial
from policy.hardware import choose_device, choose_dtype
from policy.openvla.action_tokens import load_statistics, select_statistics
from policy.openvla.checkpoint import load_checkpoint, locate_checkpoint
from policy.openvla.images import PreprocessorSettings
from policy.openvla.prompt import Prompter
from policy.results import write_result
from policy.training.demonstrations import list_demonstrations
from policy.training.widen import OPENVLA_7B_SIZES, widened

PLAIN = "autoregressive"


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demonstrations", type=Path, help="folder of .npz files with frames, see collect_demos.py")
    parser.add_argument("--decoding", nargs="+", type=str, default=["exact"], help="names or files")
    parser.add_argument("--weights", type=dict[str, Path], default={}, help="folders of trained drafters, by name")
    parser.add_argument("--episodes", type=int, default=10, help="so many of them, evenly taken")
    parser.add_argument("--steps", type=int | None, default=None, help="first frames of each episode; all if left out")
    parser.add_argument("--warming", type=int, default=1, help="episodes played first and not counted")
    parser.add_argument("--checkpoint", type=str, default="policy/pretrained/libero", help="directory or hub id")
    parser.add_argument("--shape", type=Literal["own", "7b"], default="own", help="7b: widened to OpenVLA-7B's sizes")
    parser.add_argument("--acceleration", type=str, default="none", help=", ".join(PRESETS))
    parser.add_argument("--unnorm-key", type=str | None, default=None, help="dataset statistics")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", type=str, default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--output", type=Path | None, default=None, help="JSON file for the result")
    return parser


def main() -> None:
    chosen, console = make_parser().parse_args(), Console()
    try:
        paths = list_demonstrations(chosen.demonstrations)
        if len(paths) < 1 + chosen.warming:
            raise ValueError(
                f"{chosen.demonstrations} has {len(paths)} demonstrations, and {1 + chosen.warming} are needed: "
                "--warming and one to measure"
            )
        rows = measure(paths[:: max(1, len(paths) // (chosen.episodes + chosen.warming))], chosen)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"cannot measure: {error}") from None
    console.print(table_of(rows))
    fastest = min((row for row in rows if row["acceptance"] == "exact"), key=lambda row: row["mean_ms"], default=None)
    if fastest is not None:
        console.print(f"fastest under exact acceptance: {fastest['decoding']}, {fastest['mean_ms']:.2f} ms")
    if chosen.output is not None:
        times = {row["decoding"]: row["mean_ms"] for row in rows}
        write_result(chosen.output, rows, {"fastest_exact": fastest and fastest["decoding"], "mean_ms": times})


@torch.inference_mode()
def measure(paths: list[Path], chosen: Namespace) -> list[dict[str, Any]]:
    directory = locate_checkpoint(chosen.checkpoint)
    statistics = select_statistics(load_statistics(directory), chosen.unnorm_key)
    device = choose_device(chosen.device)
    model = load_checkpoint(directory, device, choose_dtype(chosen.dtype, device))
    if chosen.shape == "7b":
        model = widened(model, OPENVLA_7B_SIZES)
    accelerate(model, preset(chosen.acceleration))
    prompter = Prompter(directory, maximum_tokens=model.config.maximum_tokens)
    settings = PreprocessorSettings.load(directory)
    counted = paths[: chosen.episodes + chosen.warming]
    episodes = [LoggedEpisode.load(path, model, prompter, settings, chosen.steps) for path in counted]
    captured = device.type == "cuda"
    if captured:
        capture_passes(model)
    recorder = GraphRecorder if captured else None
    material = DrafterMaterial(model, statistics, directory, chosen.weights, recorder)
    configs = [DecodingConfig.load(name) for name in (PLAIN, *(name for name in chosen.decoding if name != PLAIN))]
    runners = [Runner(config.build(material)) for config in configs]
    race(runners, episodes[: chosen.warming])
    for runner in runners:
        runner.forget()
    race(runners, episodes[chosen.warming :])
    shared = {"device": str(device), "dtype": str(model.dtype).removeprefix("torch."), "target": chosen.checkpoint}
    shared |= {"shape": chosen.shape, "acceleration": chosen.acceleration}
    return [runner.row() | settings_of(config) | shared for runner, config in zip(runners, configs, strict=True)]


def settings_of(config: DecodingConfig) -> dict[str, Any]:
    """What distinguishes a decoding, flat."""
    if config.decoder == PLAIN:
        return {"acceptance": ""}
    kept = ("drafters", "head", "nodes", "confidence", "tail", "acceptance", "tolerance")
    return {name: value for name, value in asdict(config).items() if name in kept}


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = Table("decoding", "ms mean", "p50", "p95", "passes", "tokens in the first pass", "drafted by position, %")
    for row in rows:
        times = (f"{row[name]:.2f}" for name in ("mean_ms", "p50_ms", "p95_ms"))
        shares = " ".join(f"{100 * share:.0f}" for share in row["drafted_by_position"][:6])
        table.add_row(row["decoding"], *times, f"{row['passes']:.2f}", f"{row['first_pass_tokens']:.2f}", shares)
    return table


if __name__ == "__main__":
    main()
