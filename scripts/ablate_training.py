#!/usr/bin/env python3
"""Leave out one choice of a training recipe at a time, and let each policy that comes of it drive.

    python scripts/ablate_training.py --config configs/policy/ablations.yaml --minutes 2 --workers 60

A variant is what it changes among the options of `scripts/train_policy.py`; the first is the recipe as it is, which the
others are compared with, episode by episode, on random resets that no training saw. Every variant trains for as long.
May be stopped; the same command goes on.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from policy.results import write_result
from policy.training.demonstrations import Demonstration, list_demonstrations
from sim.collection import CollectionConfig, collect
from sim.recording_worker import CollectionError
from sim.server_process import ServerProcess
from sim.statistics import SuccessRate, compare_paired
from sim.suites import parse_numbers

_TRAIN = Path(__file__).resolve().parent / "train_policy.py"
Solved = dict[tuple[str, int, int], bool]  # by suite, task and seed


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_argument("--recipe", type=Path, default=Path("configs/policy/box.yaml"), help="of train_policy.py")
    parser.add_argument("--demonstrations", type=str, default="demos", help="folder, unless a variant names others")
    parser.add_argument("--common", type=dict[str, Any], default={}, help="options of all variants")
    parser.add_argument("--variants", type=dict[str, dict[str, Any]], default={"recipe": {}}, help="by name")
    parser.add_argument("--minutes", type=float, default=2.0, help="of training, each")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="folder for all that comes of it")
    parser.add_argument("--device", type=str, default="auto", help="of training")
    parser.add_argument("--serve-devices", nargs="+", type=str, default=["auto"], help="policies that drive take turns")
    parser.add_argument("--suites", nargs="+", type=str, default=["libero_object", "libero_spatial"])
    parser.add_argument("--tasks", type=str, default="0-9", help="numbers in each suite")
    parser.add_argument("--episodes", type=int, default=4, help="to drive, of each task; 0 to train only")
    parser.add_argument("--first-seed", type=int, default=1_000_000, help="of the first; none that was trained on")
    parser.add_argument("--workers", type=int, default=2, help="simulators, of all variants together")
    parser.add_argument("--render-devices", nargs="*", type=int, default=[], help="EGL devices, taken in turn")
    parser.add_argument("--output", type=Path, default=Path("docs/results/training-ablations.json"))
    return parser


def main() -> None:
    chosen = make_parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for name, options in chosen.variants.items():
        train(folder_of(name, chosen), chosen.common | options, chosen)
    if chosen.episodes:
        try:
            drive_all(chosen)
        except (CollectionError, RuntimeError) as error:
            raise SystemExit(f"cannot drive: {error}; the same command goes on") from None
    rows = [row_of(name, options, chosen) for name, options in chosen.variants.items()]
    write_result(chosen.output, rows, {row["variant"]: row["rate"] for row in rows})
    Console().print(table_of(rows))


def folder_of(name: str, chosen: Namespace) -> Path:
    return chosen.runs / name.replace(" ", "-")


def train(run: Path, options: dict[str, Any], chosen: Namespace) -> None:
    """Train one variant, unless that is done."""
    if (run / "policy" / "training_config.json").is_file():
        return
    run.mkdir(parents=True, exist_ok=True)
    given = {"demonstrations": [chosen.demonstrations], "minutes": chosen.minutes, "device": chosen.device} | options
    command = [sys.executable, str(_TRAIN), "--config", str(chosen.recipe), "--output", str(run)]
    command += [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in given.items()]
    with (run / "train.log").open("a") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise SystemExit(f"training of {run.name} ended with exit code {code}; {run / 'train.log'} says why")


def drive_all(chosen: Namespace) -> None:
    """Let all variants drive at the same time, each with its share of the simulators."""
    runs = [folder_of(name, chosen) for name in chosen.variants]
    devices = [chosen.serve_devices[number % len(chosen.serve_devices)] for number in range(len(runs))]
    servers = [
        ServerProcess(run / "server.log", ["--checkpoint", str(run / "policy"), "--max-batch", "64"], device)
        for run, device in zip(runs, devices, strict=True)
    ]

    def drive(run: Path, server: ServerProcess) -> None:
        while not server.endpoint():
            time.sleep(0.2)
        config = CollectionConfig(
            output=run / "driven",
            suites=tuple(chosen.suites),
            tasks=parse_numbers(chosen.tasks),
            episodes=chosen.episodes,
            first_seed=chosen.first_seed,
            noise=0.0,
            driver_endpoint=server.endpoint(),
            driver_alone=True,
            workers=max(1, chosen.workers // len(runs)),
            render_devices=tuple(chosen.render_devices),
        )
        collect(config)

    try:
        with ThreadPoolExecutor(len(runs)) as threads:
            list(threads.map(drive, runs, servers))
    finally:
        for server in servers:
            server.stop()
        for server in servers:
            server.close()


def solved_by(run: Path) -> Solved:
    """Every episode that the policy of this run drove alone, and whether it solved it."""
    driven = run / "driven"
    metas = [Demonstration.load(path).meta for path in list_demonstrations(driven)] if driven.is_dir() else []
    return {(meta.suite, meta.task, meta.seed): meta.success for meta in metas}


def row_of(name: str, options: dict[str, Any], chosen: Namespace) -> dict[str, Any]:
    run, recipe = folder_of(name, chosen), folder_of(next(iter(chosen.variants)), chosen)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last, held_out = logged[-1], next((line["held_out"] for line in logged[::-1] if line["held_out"]), None)
    own, others = solved_by(run), solved_by(recipe)
    rate = SuccessRate(sum(own.values()), len(own))
    low, high = rate.interval()
    row = {"variant": name, "changes": options, "minutes": chosen.minutes, "episodes_driven": rate.episodes}
    row |= {"successes": rate.successes, "rate": rate.rate if own else None}
    row |= {"wilson95_low": low, "wilson95_high": high}
    if own.keys() & others.keys():
        row |= {f"against_recipe_{key}": value for key, value in asdict(compare_paired(own, others)).items()}
    return row | {key: last[key] for key in ("step", "frames", "episodes", "train")} | {"held_out": held_out}


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = Table("variant", "solved", "95 %", "steps", "held-out pose loss")
    for row in rows:
        interval = "" if row["rate"] is None else f"{100 * row['wilson95_low']:.0f}-{100 * row['wilson95_high']:.0f}"
        loss = (row["held_out"] or {}).get("pose")
        solved = f"{row['successes']}/{row['episodes_driven']}"
        table.add_row(row["variant"], solved, interval, str(row["step"]), "" if loss is None else f"{loss:.3f}")
    return table


if __name__ == "__main__":
    main()
