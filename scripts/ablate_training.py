#!/usr/bin/env python3
"""Leave out one choice of a training recipe at a time, and let each policy that comes of it drive.

    python scripts/ablate_training.py --config configs/policy/ablations.yaml --workers 30

A variant is what it changes among the options of `scripts/train_policy.py`; the first is the recipe as it is, which the
others are compared with, episode by episode, on random resets that no training saw. A continuation goes on from the
first one's policy while new episodes are recorded, with options of `scripts/train_with_aggregation.py`. Variants drive
while others train, so give `max_steps` where all are to learn equally much. May be stopped; the same command goes on.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from policy.results import write_result
from policy.training.demonstrations import DemonstrationMeta, list_demonstrations
from sim.collection import CollectionConfig, collect
from sim.recording_worker import CollectionError
from sim.server_process import ServerProcess
from sim.statistics import SuccessRate, compare_paired
from sim.suites import parse_numbers

_SCRIPTS = Path(__file__).resolve().parent
_DONE = "trained"
Solved = dict[Hashable, bool]  # by suite, task and seed


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_argument("--recipe", type=Path, default=Path("configs/policy/box.yaml"), help="of train_policy.py")
    parser.add_argument("--demonstrations", type=str, default="demos", help="folder, unless a variant names others")
    parser.add_argument("--common", type=dict[str, Any], default={}, help="options of all variants")
    parser.add_argument("--variants", type=dict[str, dict[str, Any]], default={"recipe": {}}, help="by name")
    parser.add_argument(
        "--continuations",
        type=dict[str, dict[str, Any]],
        default={},
        help="by name; train_with_aggregation.py's options",
    )
    parser.add_argument("--continuation", type=dict[str, Any], default={}, help="options of all continuations")
    parser.add_argument("--minutes", type=float, default=2.0, help="of training, at most, each")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="folder for all that comes of it")
    parser.add_argument("--device", type=str, default="auto", help="of training")
    parser.add_argument("--serve-device", type=str, default="auto", help="of the policy that drives")
    parser.add_argument("--suites", nargs="+", type=str, default=["libero_object", "libero_spatial"])
    parser.add_argument("--tasks", type=str, default="0-9", help="numbers in each suite")
    parser.add_argument("--episodes", type=int, default=4, help="to drive, of each task; 0 to train only")
    parser.add_argument("--first-seed", type=int, default=1_000_000, help="of the first; none that was trained on")
    parser.add_argument("--workers", type=int, default=2, help="simulators of a policy that drives")
    parser.add_argument("--render-devices", nargs="*", type=int, default=[], help="EGL devices, taken in turn")
    parser.add_argument("--output", type=Path, default=Path("docs/results/training-ablations.json"))
    return parser


def main() -> None:
    chosen = make_parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run_all(chosen)
    except (CollectionError, RuntimeError) as error:
        raise SystemExit(f"cannot drive: {error}; the same command goes on") from None
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # whoever stops this wants to see what there is
        report(chosen)


def run_all(chosen: Namespace) -> None:
    """Train and drive what is missing: variants drive while others train, continuations afterwards."""
    recipe = folder_of(next(iter(chosen.variants)), chosen)
    stopping = Event()
    with ThreadPoolExecutor(1) as drivers:
        try:
            driven = []
            for name, options in chosen.variants.items():
                train(folder_of(name, chosen), variant_command(folder_of(name, chosen), options, chosen))
                driven.append(drivers.submit(drive, folder_of(name, chosen), chosen, stopping))
            for future in driven:
                future.result()
            report(chosen)
            for name, options in chosen.continuations.items():  # they need simulators of their own
                train(folder_of(name, chosen), continuation_command(folder_of(name, chosen), recipe, options, chosen))
                drive(folder_of(name, chosen), chosen, stopping)
        finally:
            stopping.set()


def report(chosen: Namespace) -> None:
    """Write and print what there is of all policies whose training has come to its end, also when not all have."""
    everything = chosen.variants | chosen.continuations
    rows = [
        row_of(name, options, chosen) for name, options in everything.items() if is_trained(folder_of(name, chosen))
    ]
    if rows:
        write_result(chosen.output, rows, {row["variant"]: row["rate"] for row in rows})
        Console().print(table_of(rows))


def folder_of(name: str, chosen: Namespace) -> Path:
    return chosen.runs / name.replace(" ", "-")


def variant_command(run: Path, options: Mapping[str, Any], chosen: Namespace) -> list[str]:
    given = {"demonstrations": [chosen.demonstrations], "minutes": chosen.minutes, "device": chosen.device}
    given |= chosen.common | options
    command = [sys.executable, str(_SCRIPTS / "train_policy.py"), "--config", str(chosen.recipe), "--output", str(run)]
    return command + [f"--{name}={text_of(value)}" for name, value in given.items()]


def continuation_command(run: Path, start: Path, options: Mapping[str, Any], chosen: Namespace) -> list[str]:
    given = {"minutes": chosen.minutes, "device": chosen.device, "workers": chosen.workers, "suites": chosen.suites}
    given |= {"tasks": chosen.tasks, "render-devices": chosen.render_devices, "driver-devices": [chosen.serve_device]}
    given |= chosen.continuation | options
    command = [sys.executable, str(_SCRIPTS / "train_with_aggregation.py"), "--training", str(chosen.recipe)]
    command += ["--run", str(run), "--initialize-from", str(start / "policy")]
    for name, value in given.items():
        command += [f"--{name}", *map(text_of, value if isinstance(value, list) else [value])]
    return command


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def train(run: Path, command: list[str]) -> None:
    """Train one policy, unless that is done."""
    if is_trained(run):
        return
    run.mkdir(parents=True, exist_ok=True)
    with (run / "ablation.log").open("a") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise SystemExit(f"training of {run.name} ended with exit code {code}; {run / 'ablation.log'} says why")
    (run / _DONE).touch()


def is_trained(run: Path) -> bool:
    """Whether training came to its end: it saves policies before that, too."""
    return (run / _DONE).is_file()


def drive(run: Path, chosen: Namespace, stopping: Event) -> None:
    """Let a policy drive what it has not driven yet, up to `stopping`."""
    if chosen.episodes == 0 or stopping.is_set():
        return
    arguments = ["--checkpoint", str(run / "policy"), "--decoding", "autoregressive", "--max-batch", "64"]
    server = ServerProcess(run / "server.log", arguments, chosen.serve_device)
    try:
        while not server.endpoint():
            if stopping.is_set():
                return
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
            workers=chosen.workers,
            render_devices=tuple(chosen.render_devices),
        )
        print(f"{run.name} drove {collect(config, finished=stopping.is_set)}", flush=True)
    finally:
        server.close()


def solved_by(run: Path) -> Solved:
    """Every episode that the policy of this run drove alone, and whether it solved it."""
    driven = run / "driven"
    metas = [DemonstrationMeta.load(path) for path in list_demonstrations(driven)] if driven.is_dir() else []
    return {(meta.suite, meta.task, meta.seed): meta.success for meta in metas}


def row_of(name: str, options: Mapping[str, Any], chosen: Namespace) -> dict[str, Any]:
    run, recipe = folder_of(name, chosen), folder_of(next(iter(chosen.variants)), chosen)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last, held_out = logged[-1], next((line["held_out"] for line in logged[::-1] if line["held_out"]), None)
    own, others = solved_by(run), solved_by(recipe)
    rate = SuccessRate(sum(own.values()), len(own))
    low, high = rate.interval()
    row: dict[str, Any] = {"variant": name, "changes": options, "training_seconds": last["seconds"]}
    row |= {"episodes_driven": rate.episodes, "successes": rate.successes, "rate": rate.rate if own else None}
    row |= {"wilson95_low": low, "wilson95_high": high}
    if own.keys() & others.keys():
        row |= {f"against_first_{key}": value for key, value in asdict(compare_paired(own, others)).items()}
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
