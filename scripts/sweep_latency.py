"""Measure what latency costs: success by decoder, latency, suite and conveyor speed, in a world that does not wait.

    python scripts/sweep_latency.py --config configs/eval/latency-laptop.yaml     # at most 15 minutes on two cores
    python scripts/sweep_latency.py --config configs/eval/latency.yaml --workers 56 --servers 4 \\
        --devices cuda:0 cuda:1 --render-devices 2 3
    python scripts/report.py runs/latency                                         # then look at it

All conditions run the same episodes in one pool of simulators; those of one decoding share its servers. Run it again to
go on where the time limit stopped it, or to repeat what ended in errors; the result is written from all that is there,
also with --time-limit 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace
from rich import box
from rich.console import Console
from rich.table import Table

from policy.results import write_result
from policy.types import PolicySpec
from sim.cells import Cell, cells_of, rows_of
from sim.command_line import add_pool_options, add_server_options, plain_ending, served_checkpoint
from sim.evaluation import EvaluationConfig, dealt_out, evaluate_all
from sim.policy_hosts import PolicyHost, StandingPolicy
from sim.served_checkpoint import ServedCheckpoint
from sim.sources import ScriptedExpert
from sim.suites import parse_numbers
from sim.summary import conditions
from sim.sweep import Condition, Row, Serving, SweepConfig
from sim.sweep_result import SweepResult

if TYPE_CHECKING:  # importing it takes torch, which the simulator processes, who import this file, can do without
    from policy.decoding.config import DecodingConfig

EXPERT = "expert"
# Several hosts of the same policy.
Hosting = Callable[[Serving, int], Sequence[PolicyHost]]
# Columns of the printed table that are plain numbers, with decimal places.
NUMBERS = {"mcnemar_p": 3, "completion_s": 2, "effective_hz": 1, "stale_share": 2, "deadline_miss_share": 2}


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    add_server_options(parser)
    add_pool_options(parser)
    parser.add_argument("--sweep", type=SweepConfig, help="what to sweep")
    parser.add_argument("--videos", type=bool, default=False, help="films of each task's first episode")
    parser.add_argument("--output", type=Path, default=Path("docs/results/latency.json"))
    parser.set_defaults({"sweep.runs": Path("runs/latency")})
    return parser


def main() -> None:
    started = time.monotonic()
    parser = make_parser()
    chosen = parser.parse_args()
    try:
        sweep = sweep_of(chosen)
    except ValueError as error:
        parser.error(str(error))
    with plain_ending("sweep", sweep.runs):
        served = None if chosen.checkpoint == EXPERT else served_checkpoint(chosen)
        run(sweep, hosting_of(served, sweep.runs), chosen, started + chosen.time_limit)
        result = SweepResult(sweep, specs_of(served))
    report(sweep, result, chosen.output, Console())


def sweep_of(chosen: Namespace) -> SweepConfig:
    """The sweep of the command line. Raises ValueError where it makes no sense."""
    values = chosen.sweep.as_dict()
    return SweepConfig(**values | {"rows": {name: Row(**row) for name, row in values["rows"].items()}})


def run(sweep: SweepConfig, hosting: Hosting, chosen: Namespace, deadline: float) -> None:
    """All episodes that are not on disk yet, as far as the time goes."""
    if sweep.timed_suite and (left := deadline - time.monotonic()) > 0:
        timed = sweep.timed()
        alone = replace(evaluation_of(timed, sweep, chosen, left), videos=None)  # they would be timed, too
        evaluate_all(dealt_out(alone, hosting(timed.serving, chosen.servers)), live=chosen.servers)
    if (left := deadline - time.monotonic()) > 0:
        shared = {serving: hosting(serving, count) for serving, count in sweep.servers(chosen.servers).items()}
        evaluations = [
            (
                replace(evaluation_of(condition, sweep, chosen, left), suites=(suite,)),
                shared[condition.serving][server],
            )
            for condition, suite, server in sweep.parts(chosen.servers)
        ]
        evaluate_all(evaluations, live=chosen.servers)


def evaluation_of(condition: Condition, sweep: SweepConfig, chosen: Namespace, seconds: float) -> EvaluationConfig:
    """The episodes of a condition, as far as the time goes."""
    return EvaluationConfig(
        output=condition.file,
        suites=condition.suites,
        tasks=parse_numbers(sweep.tasks),
        init_states=parse_numbers(condition.initial_states),
        workers=chosen.workers,
        protocol=condition.protocol,
        timing=condition.timing,
        videos=condition.file.with_suffix("") if chosen.videos else None,
        time_limit=seconds,
        render_devices=tuple(chosen.render_devices),
    )


def hosting_of(served: ServedCheckpoint | None, folder: Path) -> Hosting:
    """Servers of a checkpoint, with their files in this folder; the expert, where there is none."""
    if served is None:
        return lambda serving, count: [StandingPolicy(ScriptedExpert())] * count

    def servers(serving: Serving, count: int) -> Sequence[PolicyHost]:
        decoding = decoding_of(serving)
        file = folder / decoding.name.replace(", ", "-")
        return served.hosts(count, decoding, file, serving.acceleration)

    return servers


def specs_of(served: ServedCheckpoint | None) -> Callable[[Serving], PolicySpec]:
    """What the policy of a serving is, before it is up."""
    if served is None:
        return lambda serving: ScriptedExpert().spec()
    return lambda serving: served.spec_of(decoding_of(serving), serving.acceleration)


def decoding_of(serving: Serving) -> DecodingConfig:
    """Raises ValueError for a decoding that is not there."""
    from policy.decoding.config import DecodingConfig

    decoding = DecodingConfig.load(serving.decoding)
    if serving.acceleration and decoding.decoder == "speculative":  # the plain one has a name of its own
        decoding = replace(decoding, name=f"{decoding.name}, {serving.acceleration}")
    return decoding


def report(sweep: SweepConfig, result: SweepResult, output: Path, console: Console) -> None:
    """Write and print what all runs so far have given."""
    records = result.records()
    for line in result.missing():
        console.print(f"missing: {line}", highlight=False, soft_wrap=True)
    if not records:
        raise SystemExit(
            f"{sweep.runs} has no episodes of this policy yet; give more time, or the --dtype that those there have"
        )
    cells = cells_of(records)
    rows = rows_of(cells)
    write_result(output, [row | conditions_of(cell) for row, cell in zip(rows, cells, strict=True)], result.headline())
    title = "Success and latency"
    if records[0].privileged:
        title += "; privileged: reads the simulator's state"
    console.print(table_of(cells, rows, title))


def conditions_of(cell: Cell) -> dict[str, Any]:
    """On what a cell ran; errors know it only in part."""
    shared = conditions(cell.records)
    return {name: shared[name] for name in ("device", "dtype", "decoding_digest", "privileged")}


def table_of(cells: Sequence[Cell], rows: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("world, decoder, latency", overflow="fold")
    for name in ("solved", "95 %", "p", "seconds", "Hz", "stale", "missed"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell, row in zip(cells, rows, strict=True):
        table.add_row(
            f"{cell.world}, {cell.decoder}, {cell.latency}",
            f"{row['successes']}/{row['episodes']}",
            f"{100 * row['wilson95_low']:.0f}-{100 * row['wilson95_high']:.0f}",
            *(number(row.get(name), places) for name, places in NUMBERS.items()),
        )
    return table


def number(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:.{places}f}"


if __name__ == "__main__":
    main()
