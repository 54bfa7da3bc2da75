"""Time decodings with different drafters on logged frames, and name the fastest.

    python scripts/measure_drafters.py demos --checkpoint runs/mine --acceleration skinny
    python scripts/measure_drafters.py demos --weights '{"eagle": "runs/eagle"}' --decoding exact eagle

Only episodes that the drafters' training holds out are played, as on others their drafts are better than in serving.
All decodings see every frame one after the other. The first is plain decoding, which the others are compared with.
Unless they are named, they are every drafter that there is, alone and together, exact and relaxed, and Spec-VLA as
published. Trained ones are looked for beside the target's weights and in --weights.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from policy.acceleration.plan import PRESETS, accelerate, preset
from policy.benchmark.drafter_episodes import JudgedEpisodes, choose_demonstrations, choose_of_data_set, split_of
from policy.benchmark.drafter_rows import PLAIN, drafter_configs, drafter_headline, fastest_exact, further_tokens
from policy.decoding.capture import GraphRecorder, capture_passes
from policy.decoding.config import DecodingConfig
from policy.decoding.race import Runner, race
from policy.decoding.replay_target import ReplayTarget, add_replay_options, replay_paths
from policy.drafting.registry import trained_drafters
from policy.results import write_result
from policy.training.episode_choice import is_held_out
from policy.training.episode_reader import EpisodeReader, FrameSource, check_options_fit, is_data_set
from policy.training.widen import OPENVLA_7B_SIZES, widened
from policy.training.widened_drafters import drafters_for_wide, write_widened_drafters


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_replay_options(parser)
    parser.add_argument("--decoding", nargs="*", type=str, default=[], help="names or files; all unless given")
    parser.add_argument("--weights", type=dict[str, Path], default={}, help="folders of trained drafters, by name")
    parser.add_argument("--episodes", type=int, default=10, help="so many of them, evenly taken")
    parser.add_argument("--all", type=bool, default=False, help="also those that drafters may have been trained on")
    split = "one episode in so many was held out; unless given, as the drafters' training says, or 20"
    parser.add_argument("--held-out-every", type=int | None, default=None, help=split)
    parser.add_argument("--camera", type=str | None, default=None, help="of a LeRobot or RLDS data set")
    parser.add_argument("--turned", type=bool | None, default=None, help="whether it stores pictures turned")
    parser.add_argument("--warming", type=int, default=1, help="episodes played first and not counted")
    limit = "seconds after which no frame begins; what was played until then is told"
    parser.add_argument("--time-limit", type=float, default=math.inf, help=limit)
    shapes = "7b: widened to OpenVLA-7B's sizes, and heads with it"
    parser.add_argument("--shape", type=Literal["own", "7b"], default="own", help=shapes)
    parser.add_argument("--acceleration", type=str, default="none", help=", ".join(PRESETS))
    return parser


def main() -> None:
    chosen, console = make_parser().parse_args(), Console()
    try:
        with TemporaryDirectory() as scratch:
            rows = measure(chosen, Path(scratch))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"cannot measure: {error}") from None
    console.print(table_of(rows))
    if (fastest := fastest_exact(rows)) is not None:
        console.print(f"fastest with the target's own choices: {fastest['decoding']}, {fastest['mean_ms']:.2f} ms")
    played, held_out = rows[0]["episodes"], rows[0]["held_out_episodes"]
    if held_out < played:
        console.print(f"{played - held_out} of {played} episodes are ones that trained drafters may have learned from")
    if chosen.output is not None:
        write_result(chosen.output, rows, drafter_headline(rows))


@torch.inference_mode()
def measure(chosen: Namespace, scratch: Path) -> list[dict[str, Any]]:
    """A row for each decoding. scratch: an empty folder, for drafters that are widened with their target."""
    until = time.monotonic() + chosen.time_limit
    target, weights = ReplayTarget.load(chosen), dict(chosen.weights)
    folders = drafter_folders(target, chosen)
    judged = judged_episodes(target, chosen, folders)
    if chosen.shape == "7b":
        wide = widened(target.model, OPENVLA_7B_SIZES)
        weights = write_widened_drafters(folders, target.model, wide.config.language, scratch)
        target = replace(target, model=wide)
    accelerate(target.model, preset(chosen.acceleration))
    captured = target.model.device.type == "cuda"
    if captured:
        capture_passes(target.model)
    material = target.material(weights, GraphRecorder if captured else None)
    configs = [DecodingConfig.load(name) for name in (PLAIN, *(name for name in chosen.decoding if name != PLAIN))]
    if not chosen.decoding:
        configs = drafter_configs(trained_drafters(target.directory, weights))
    runners = [Runner(config.build(material)) for config in configs]
    race(runners, [target.episode(logged) for logged in judged.warming], until)
    for runner in runners:
        runner.forget()
    played = race(runners, [target.episode(logged) for logged in judged.measured], until)
    shared = {"device": str(target.model.device), "dtype": target.dtype, "target": chosen.checkpoint}
    shared |= {"shape": chosen.shape, "acceleration": chosen.acceleration}
    shared |= {"episodes": played, "held_out_episodes": sum(judged.held_out[:played])}
    rows = [runner.row() | settings_of(config) | shared for runner, config in zip(runners, configs, strict=True)]
    plain = rows[0]["mean_ms"]
    return [row | {"further_tokens": further_tokens(row), "speedup_over_plain": plain / row["mean_ms"]} for row in rows]


def drafter_folders(target: ReplayTarget, chosen: Namespace) -> dict[str, Path]:
    """Of the trained drafters that there are, by name, before any is widened."""
    if chosen.shape == "7b":
        return drafters_for_wide(target.directory, chosen.weights)
    material = target.material(chosen.weights)
    return {name: material.trained(name) for name in trained_drafters(target.directory, chosen.weights)}


def judged_episodes(target: ReplayTarget, chosen: Namespace, folders: dict[str, Path]) -> JudgedEpisodes:
    """As the options say. folders: the trained drafters', whose trainings say what they held out."""
    every = chosen.held_out_every or split_of(folders.values())
    source = FrameSource(str(chosen.demonstrations), chosen.camera, chosen.turned)
    check_options_fit(source)
    if not is_data_set(chosen.demonstrations):
        paths = replay_paths(chosen, 1 + chosen.warming)
        return choose_demonstrations(paths, every, chosen.episodes, chosen.warming, chosen.all)
    wanted = (lambda name: True) if chosen.all else (lambda name: is_held_out(name, every))
    reader = EpisodeReader(source, target.image_path, target.settings, processes=1, wanted=wanted)
    return choose_of_data_set(reader, every, chosen.episodes, chosen.warming)


def settings_of(config: DecodingConfig) -> dict[str, Any]:
    """What distinguishes a decoding, flat."""
    if config.decoder == PLAIN:
        return {"acceptance": ""}
    kept = ("drafters", "head", "nodes", "tail_nodes", "confidence", "tail", "acceptance", "tolerance")
    return {name: value for name, value in asdict(config).items() if name in kept}


def table_of(rows: list[dict[str, Any]]) -> Table:
    """What fits a terminal of 80 columns; acceptance by position is in the result file."""
    table = Table(box=None, padding=(0, 1), caption="tokens: what the first pass and a further one gain")
    table.add_column("decoding", no_wrap=True)
    for name in ("ms", "p50", "p95", "x plain", "passes", "tokens", "later"):
        table.add_column(name, no_wrap=True, justify="right")
    for row in rows:
        times = (f"{row[name]:.1f}" for name in ("mean_ms", "p50_ms", "p95_ms"))
        names = ("speedup_over_plain", "passes", "first_pass_tokens", "further_tokens")
        others = ("" if row[name] is None else f"{row[name]:.2f}" for name in names)
        table.add_row(row["decoding"], *times, *others)
    return table


if __name__ == "__main__":
    main()
