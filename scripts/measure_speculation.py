"""Measure what speculation saves and costs on LIBERO: every rule, drafter and tail, and sweeps of the tolerances.

    python scripts/measure_speculation.py --groups rules --suites libero_object --initial-states 0-1 --tasks 0
    python scripts/measure_speculation.py --workers 48 --servers 4 --devices cuda:0 cuda:1 --render-devices 2 3
    python scripts/measure_speculation.py --decodings default --checkpoint DIR --output docs/results/closed-loop.json

Each decoding runs the same official episodes on the lock-step clock, served by a process of its own that some ten
simulators share. Put rendering and servers on different GPUs, since a GPU that draws for a dozen simulators is slow to
decode. Run it again to go on where the time limit stopped it, or to repeat what ended in errors; the result and the
plot are written from all that is there, also with --time-limit 0.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from policy.decoding.physical import ActionUnits
from policy.openvla.action_tokens import load_statistics, select_statistics
from policy.results import write_result
from policy.types import PolicySpec
from sim.command_line import add_pool_options, add_server_options, plain_ending, served_checkpoint
from sim.comparison import ALL_SUITES, comparison_rows
from sim.comparison_plot import plot_passes_and_success
from sim.evaluation import EvaluationConfig, evaluate_all
from sim.newest_records import newest_by_key
from sim.records import EpisodeRecord, Outcome, read_records
from sim.served_checkpoint import ServedCheckpoint
from sim.suites import parse_numbers
from sim.summary import conditions

if TYPE_CHECKING:  # importing them takes torch, which the simulator processes, who import this file, can do without
    from policy.decoding.config import DecodingConfig

PLAIN = "autoregressive"


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_server_options(parser)
    add_pool_options(parser)
    episodes = parser.add_argument_group("episodes")
    episodes.add_argument("--groups", nargs="+", type=str, default=[], help="what to measure, in this order; or all")
    episodes.add_argument(
        "--decodings", nargs="+", type=str, default=[], help="instead: YAML files, or names in configs/decoding"
    )
    episodes.add_argument("--suites", nargs="+", type=str, default=["libero_object", "libero_spatial"])
    episodes.add_argument("--tasks", type=str, default="0-9", help="numbers in each suite")
    episodes.add_argument(
        "--initial-states", type=str, default="0-19", help="official ones; 20 make 200 episodes a suite"
    )
    results = parser.add_argument_group("results")
    results.add_argument("--runs", type=Path, default=Path("runs/speculation"), help="folder of the episodes' records")
    results.add_argument("--agreement", type=Path, default=Path("docs/results/decoding-agreement.json"))
    results.add_argument("--output", type=Path, default=Path("docs/results/speculation.json"))
    return parser


def main() -> None:
    from policy.decoding.config import DecodingConfig
    from sim.decoding_catalogue import decoding_groups

    started = time.monotonic()
    parser = make_parser()
    chosen = parser.parse_args()
    if chosen.groups and chosen.decodings:
        parser.error("give --groups or --decodings, not both")
    groups = decoding_groups()
    if chosen.decodings:
        groups = {"chosen": [DecodingConfig.load(decoding) for decoding in chosen.decodings if decoding != PLAIN]}
    if unknown := sorted(set(chosen.groups) - set(groups)):
        parser.error(f"there is no group {', '.join(unknown)}; choose some of {', '.join(groups)}")
    members = [config for group in chosen.groups or groups for config in groups[group]]
    plain = DecodingConfig.load(PLAIN)
    with plain_ending("measure", chosen.runs):
        served = served_checkpoint(chosen)
        measure([plain, *members], served, chosen, started + chosen.time_limit)
    statistics = select_statistics(load_statistics(served.directory), served.spec.unnorm_key)
    bin_sizes = ActionUnits.from_statistics(statistics, None).bin_sizes
    report({PLAIN: [plain], **groups}, served, bin_sizes, chosen, Console())


def measure(configs: list[DecodingConfig], served: ServedCheckpoint, chosen: Namespace, deadline: float) -> None:
    """All episodes of these decodings that are not on disk yet, as far as the time goes."""
    if (left := deadline - time.monotonic()) <= 0:
        return
    hosts = {config.name: served.host(config, chosen.runs / stem_of(config.name)) for config in configs}
    evaluations = [
        (
            EvaluationConfig(
                output=file_of(name, chosen),
                suites=tuple(chosen.suites),
                tasks=parse_numbers(chosen.tasks),
                init_states=parse_numbers(chosen.initial_states),
                workers=chosen.workers,
                time_limit=left,
                render_devices=tuple(chosen.render_devices),
            ),
            host,
        )
        for name, host in hosts.items()
    ]
    evaluate_all(evaluations, live=chosen.servers)


def stem_of(decoding: str) -> str:
    return decoding.replace(", ", "-").replace(" ", "-")


def file_of(decoding: str, chosen: Namespace) -> Path:
    return chosen.runs / f"{stem_of(decoding)}.jsonl"


def report(
    groups: dict[str, list[DecodingConfig]],
    served: ServedCheckpoint,
    bin_sizes: np.ndarray,
    chosen: Namespace,
    console: Console,
) -> None:
    """Write, plot and print what all runs so far have given, those of other groups included."""
    configs = {config.name: config for group in groups.values() for config in group}
    files = {name: file_of(name, chosen) for name in configs}
    specs = {name: served.spec_of(config) for name, config in configs.items()}
    found = {name: newest_records(file, specs[name]) for name, file in files.items() if file.is_file()}
    records = {name: own for name, own in found.items() if own}
    if not records:
        raise SystemExit(
            f"{chosen.runs} has no episodes of this policy with these settings in {served.spec.dtype or 'any format'} "
            f"yet; give more time, or the --dtype that those there have"
        )
    rows = comparison_rows(records, PLAIN, bin_sizes)
    drawn = {group: [PLAIN, *(config.name for config in own)] for group, own in groups.items() if group != PLAIN}
    plot_passes_and_success(rows, drawn, chosen.output.with_suffix(".png"))
    settings = {name: settings_of(configs[name]) | conditions_of(own) for name, own in records.items()}
    told = headline_of_each(rows) if chosen.decodings else headline(rows, chosen.agreement)
    write_result(chosen.output, [row | settings[row["decoding"]] for row in rows], told)
    console.print(table_of(rows))
    for name, own in records.items():
        if errors := [record.error for record in own if record.outcome is Outcome.ERROR]:
            console.print(f"{name}: {len(errors)} errors, to be repeated by the same command; the last: {errors[-1]}")


def newest_records(file: Path, spec: PolicySpec) -> list[EpisodeRecord]:
    """The last record of every episode that this policy has run, with these settings as far as records tell them."""
    return list(newest_by_key(record for record in read_records(file) if record.is_of(spec)).values())


def settings_of(config: DecodingConfig) -> dict[str, Any]:
    """What distinguishes a decoding, flat."""
    if config.decoder == PLAIN:
        return {"acceptance": "", "tolerance": {}, "drafters": [], "tail": "", "nodes": 0}
    tree = {"drafters": list(config.drafters), "tail": config.tail, "nodes": config.nodes}
    return {"acceptance": config.acceptance, "tolerance": dict(config.tolerance)} | tree


def conditions_of(records: Sequence[EpisodeRecord]) -> dict[str, str]:
    """On what a decoding ran; errors know it only in part."""
    shared = conditions(records)
    kept = ("hardware", "renderer", "device", "dtype", "decoding_digest", "checkpoint_hash")
    return {name: shared[name] for name in kept}


def over_all_suites(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The row of each decoding over all suites, or of the only one."""
    return {row["decoding"]: row for row in rows if row["suite"] == ALL_SUITES} or {
        row["decoding"]: row for row in rows
    }


def headline_of_each(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """The numbers to quote of some decodings, over all suites."""
    quoted = ("rate", "points", "passes", "latency_p50_ms", "latency_p95_ms", "latency_p99_ms")
    return {name: {key: row.get(key) for key in quoted} for name, row in over_all_suites(rows).items()}


def headline(rows: list[dict[str, Any]], agreement: Path) -> dict[str, float | None]:
    """The numbers to quote, over all suites; None for what was not measured."""
    over_all = over_all_suites(rows)
    exact, default = (over_all.get(name, {}) for name in ("exact", "default"))
    compared = json.loads(agreement.read_text())["headline"] if agreement.is_file() else {}
    return {
        "exact_passes": exact.get("passes"),
        "default_passes": default.get("passes"),
        "default_success_minus_ar_points": default.get("points"),
        "bf16_action_agreement": compared.get("bfloat16_action_agreement"),
    }


def table_of(rows: list[dict[str, Any]]) -> Table:
    """What fits a terminal of 80 columns; latencies, deviations and McNemar's p are in the result file."""
    table = Table(title="Speculation against plain decoding", box=None, padding=(0, 1))
    for name in ("decoding", "suite", "solved", "points (95 %)", "passes"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        points, low, high = (row.get(name) for name in ("points", "points95_low", "points95_high"))
        compared = row["decoding"] != PLAIN and points is not None
        table.add_row(
            row["decoding"],
            row["suite"].removeprefix("libero_"),
            f"{row['successes']}/{row['episodes']}",
            f"{points:+.1f} ({low:+.1f}, {high:+.1f})" if compared else "",
            "" if row["passes"] is None else f"{row['passes']:.2f}",
        )
    return table


if __name__ == "__main__":
    main()
