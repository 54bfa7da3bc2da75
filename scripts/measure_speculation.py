"""Measure what speculation saves and costs on LIBERO: every rule, drafter and tail, and sweeps of the tolerances.

    python scripts/measure_speculation.py --workers 16 --time-limit 560
    python scripts/measure_speculation.py --groups rules --suites libero_object --initial-states 0-1 --tasks 0

Each decoding runs the same official episodes on the lock-step clock, with one policy in this process that answers all
workers. Run it again to go on where the time limit stopped it; the result and the plot are written from all that is
there, also with --time-limit 0.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from bridge.errors import BridgeError
from bridge.server import PolicyServer
from policy.decoding.config import DecodingConfig
from policy.decoding.physical import ActionUnits
from policy.drafting.registry import DRAFTERS
from policy.openvla.action_tokens import load_statistics, select_statistics
from policy.openvla.checkpoint import checkpoint_hash, locate_checkpoint
from policy.results import write_result
from policy.runtime import Policy
from sim.comparison import ALL_SUITES, comparison_rows
from sim.comparison_plot import plot_passes_and_success
from sim.evaluation import EvaluationConfig, evaluate
from sim.records import EpisodeRecord, newest_by_key, read_records
from sim.sources import RemotePolicy
from sim.suites import parse_numbers
from sim.workers import WorkerSetupError

PLAIN = "autoregressive"
RULES = ("exact", "spec-vla", "corrected", "physical", "typical", "default")
RADII = (0, 1, 2, 3, 5, 7, 9, 12, 15, 20)
# Millimetres and milliradians; the first keeps translation exact.
TOLERANCES = ((0.0, 8.0), (0.5, 1.0), (1.25, 2.5), (2.5, 5.0), (5.0, 10.0))


def decodings() -> dict[str, list[DecodingConfig]]:
    """What there is to measure, by group; the plain decoder belongs to all of them."""
    exact, corrected, physical = (DecodingConfig.load(name) for name in ("exact", "corrected", "physical"))
    drafted: list[DecodingConfig] = []
    for base in (exact, corrected):
        drafted += [replace(base, name=f"{base.name}, {name}", drafters=(name, "dataset")) for name in DRAFTERS
                    if name != "dataset"]  # fmt: skip
        drafted.append(replace(base, name=f"{base.name}, all drafters", drafters=tuple(DRAFTERS)))
    tails = [replace(exact, name=f"exact, {tail} tail", tail=tail) for tail in ("jacobi", "plain")]
    nodes = [replace(exact, name=f"exact, {count} nodes", nodes=count) for count in (6, 16, 64, 96)]
    swept = {
        rule: [
            replace(DecodingConfig.load(rule), name=f"{rule}, r={radius}", tolerance={"radius": radius})
            for radius in RADII
        ]
        for rule in ("spec-vla", "corrected")
    }
    tolerances = [
        replace(
            physical,
            name=f"physical, {millimetres} mm {milliradians} mrad",
            tolerance=dict(physical.tolerance) | {"translation_mm": millimetres, "rotation_mrad": milliradians},
        )
        for millimetres, milliradians in TOLERANCES
    ]
    rules = [DecodingConfig.load(name) for name in RULES]
    return {"rules": rules, "drafters": drafted, "tails": tails, "nodes": nodes, **swept, "physical": tolerances}


def make_parser(groups: Iterable[str]) -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=str, default="policy/pretrained/libero", help="directory or hub id")
    parser.add_argument("--unnorm-key", type=str | None, default=None, help="dataset statistics")
    parser.add_argument("--device", type=str, default="auto")
    parser.add_argument("--dtype", type=str, default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--groups", nargs="+", type=str, default=list(groups), help="what to measure, in this order")
    parser.add_argument("--suites", nargs="+", type=str, default=["libero_object", "libero_spatial"])
    parser.add_argument("--tasks", type=str, default="0-9", help="numbers in each suite")
    parser.add_argument(
        "--initial-states", type=str, default="0-19", help="official ones; 20 make 200 episodes a suite"
    )
    parser.add_argument("--workers", type=int, default=1, help="simulator processes, one per core")
    parser.add_argument("--time-limit", type=float, default=1e9, help="seconds after which no episode starts")
    parser.add_argument("--runs", type=Path, default=Path("runs/speculation"), help="folder of the episodes' records")
    parser.add_argument("--agreement", type=Path, default=Path("docs/results/decoding-agreement.json"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/speculation.json"))
    return parser


def main() -> None:
    groups = decodings()
    parser = make_parser(groups)
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.groups) - set(groups)):
        parser.error(f"there is no group {', '.join(unknown)}; choose some of {', '.join(groups)}")
    cells = {config.name: config for group in chosen.groups for config in groups[group]}
    deadline, console = time.monotonic() + chosen.time_limit, Console()
    try:
        for config in (DecodingConfig.load(PLAIN), *cells.values()):
            if (left := deadline - time.monotonic()) > 0:
                console.print(f"{config.name}: {left:.0f} s left", highlight=False)
                run_cell(config, chosen, left)
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; run the same command again to go on from {chosen.runs}") from None
    except (ValueError, WorkerSetupError, BridgeError) as error:
        raise SystemExit(f"cannot measure: {error}") from None
    report(groups, chosen, console)


def run_cell(config: DecodingConfig, chosen: Namespace, seconds: float) -> list[EpisodeRecord]:
    """All episodes of one decoding that are not on disk yet, as far as the time goes."""
    evaluation = EvaluationConfig(
        output=record_file(config, chosen),
        suites=tuple(chosen.suites),
        tasks=parse_numbers(chosen.tasks),
        init_states=parse_numbers(chosen.initial_states),
        workers=chosen.workers,
        time_limit=seconds,
    )

    def load(report: object) -> Policy:
        return Policy.load(chosen.checkpoint, chosen.unnorm_key, chosen.device, chosen.dtype, decoding=config)

    with PolicyServer(load, endpoint="tcp://127.0.0.1:*", max_batch=chosen.workers) as server:
        server.wait_ready()
        return evaluate(evaluation, RemotePolicy(server.endpoint))


def record_file(config: DecodingConfig, chosen: Namespace) -> Path:
    return chosen.runs / f"{config.name.replace(', ', '-').replace(' ', '-')}.jsonl"


def report(groups: dict[str, list[DecodingConfig]], chosen: Namespace, console: Console) -> None:
    """Write, plot and print what all runs so far have given, those of other groups included."""
    configs = [
        DecodingConfig.load(PLAIN),
        *{config.name: config for group in groups.values() for config in group}.values(),
    ]
    files = {config.name: record_file(config, chosen) for config in configs}
    directory = locate_checkpoint(chosen.checkpoint)
    records = {name: newest_records(file, checkpoint_hash(directory)) for name, file in files.items() if file.is_file()}
    statistics = select_statistics(load_statistics(directory), chosen.unnorm_key)
    records = {name: own for name, own in records.items() if own}
    if not records:
        raise SystemExit(f"{chosen.runs} has no episodes of these weights yet; give more time")
    rows = comparison_rows(records, PLAIN, ActionUnits.from_statistics(statistics, None).bin_sizes)
    drawn = {group: [PLAIN, *(config.name for config in members)] for group, members in groups.items()}
    plot_passes_and_success(rows, drawn, chosen.output.with_suffix(".png"))
    settings = {config.name: settings_of(config) for config in configs}
    first = next(iter(records.values()))[0]
    shared = {"device": first.device, "dtype": first.dtype, "checkpoint_hash": first.checkpoint_hash}
    write_result(
        chosen.output, [row | settings[row["decoding"]] | shared for row in rows], headline(rows, chosen.agreement)
    )
    console.print(table_of(rows))


def newest_records(file: Path, weights: str) -> list[EpisodeRecord]:
    """The last record of every episode that these weights have run."""
    newest = newest_by_key(read_records(file)).values()
    return [record for record in newest if record.checkpoint_hash == weights]


def settings_of(config: DecodingConfig) -> dict[str, Any]:
    """What distinguishes a decoding, flat."""
    if config.decoder == PLAIN:
        return {"acceptance": "", "tolerance": {}, "drafters": [], "tail": "", "nodes": 0}
    tree = {"drafters": list(config.drafters), "tail": config.tail, "nodes": config.nodes}
    return {"acceptance": config.acceptance, "tolerance": dict(config.tolerance)} | tree


def headline(rows: list[dict[str, Any]], agreement: Path) -> dict[str, float | None]:
    """The numbers to quote, over all suites; None for what was not measured."""
    over_all = {row["decoding"]: row for row in rows if row["suite"] == ALL_SUITES}
    over_all = over_all or {row["decoding"]: row for row in rows}
    exact, default = (over_all.get(name, {}) for name in ("exact", "default"))
    compared = json.loads(agreement.read_text())["headline"] if agreement.is_file() else {}
    return {
        "exact_passes": exact.get("passes"),
        "default_passes": default.get("passes"),
        "default_success_minus_ar_points": default.get("points"),
        "bf16_action_agreement": compared.get("bfloat16_action_agreement"),
    }


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = Table("decoding", "suite", "solved", "points", "p", "passes", title="Speculation against plain decoding")
    for row in rows:
        points, p_value = (row.get(name) for name in ("points", "mcnemar_p"))
        table.add_row(
            row["decoding"],
            row["suite"],
            f"{row['successes']}/{row['episodes']}",
            "" if points is None else f"{points:+.1f}",
            "" if p_value is None else f"{p_value:.2f}",
            "" if row["passes"] is None else f"{row['passes']:.2f}",
        )
    return table


if __name__ == "__main__":
    main()
