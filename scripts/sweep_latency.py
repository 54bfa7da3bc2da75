"""Measure what latency costs: success by decoder, latency, suite and conveyor speed, in a world that does not wait.

    python scripts/sweep_latency.py --config configs/eval/latency.yaml --workers 16 --time-limit 580
    python scripts/sweep_latency.py --config configs/eval/latency-laptop.yaml     # at most 15 minutes on two cores
    python scripts/report.py runs/latency                                         # then look at it

All conditions run the same episodes, with one policy in this process that answers all workers. Run it again to go on
where the time limit stopped it; the result is written from all that is there, also with --time-limit 0.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.errors import BridgeError
from policy.results import write_result
from sim.cells import Cell, cells_of, rows_of
from sim.comparison import success_columns
from sim.episode_worker import WorkerSetupError
from sim.evaluation import EvaluationConfig, evaluate_all
from sim.policy_hosts import StandingPolicy
from sim.records import EpisodeRecord, newest_by_key, read_records
from sim.sources import PolicySource, RemotePolicy, ScriptedExpert
from sim.suites import parse_numbers
from sim.sweep import Condition, Row, SweepConfig

EXPERT = "expert"
SUITE_EPISODES = 500
# Columns of the printed table that are plain numbers, with decimal places.
NUMBERS = {"mcnemar_p": 3, "completion_s": 2, "effective_hz": 1, "stale_share": 2, "deadline_miss_share": 2}


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_argument(
        "--checkpoint", type=str, default="policy/pretrained/libero", help='or "expert": reads the state'
    )
    parser.add_argument("--unnorm-key", type=str | None, default=None, help="dataset statistics")
    parser.add_argument("--device", type=str, default="auto")
    parser.add_argument("--dtype", type=str, default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--sweep", type=SweepConfig, help="what to sweep")
    parser.add_argument("--workers", type=int, default=1, help="simulator processes, one per core")
    parser.add_argument(
        "--render-devices", nargs="+", type=int, default=[], help="EGL devices that the workers take turns on"
    )
    parser.add_argument("--time-limit", type=float, default=1e9, help="seconds after which no episode starts")
    parser.add_argument("--videos", type=bool, default=False, help="films of each task's first episode")
    parser.add_argument("--output", type=Path, default=Path("docs/results/latency.json"))
    parser.set_defaults({"sweep.runs": Path("runs/latency")})
    return parser


def main() -> None:
    parser = make_parser()
    chosen = parser.parse_args()
    try:
        sweep = sweep_of(chosen)
    except ValueError as error:
        parser.error(str(error))
    deadline, console = time.monotonic() + chosen.time_limit, Console()
    try:
        for decoding, conditions in groupby(sweep.conditions(), key=lambda condition: condition.decoding):
            if (left := deadline - time.monotonic()) > 0:
                console.print(f"{decoding}: {left:.0f} s left", highlight=False)
                with policy_source(decoding, chosen) as source:
                    host = StandingPolicy(source)
                    evaluate_all([(evaluation_of(each, sweep, chosen, left), host) for each in conditions])
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; run the same command again to go on from {sweep.runs}") from None
    except (ValueError, WorkerSetupError, BridgeError) as error:
        raise SystemExit(f"cannot sweep: {error}") from None
    report(sweep, chosen, console)


def sweep_of(chosen: Namespace) -> SweepConfig:
    """The sweep of the command line. Raises ValueError where it makes no sense."""
    values = chosen.sweep.as_dict()
    return SweepConfig(**values | {"rows": {name: Row(**row) for name, row in values["rows"].items()}})


def evaluation_of(condition: Condition, sweep: SweepConfig, chosen: Namespace, seconds: float) -> EvaluationConfig:
    """The episodes of a condition, as far as the time goes."""
    return EvaluationConfig(
        output=condition.file,
        suites=sweep.suites,
        tasks=parse_numbers(sweep.tasks),
        init_states=parse_numbers(sweep.initial_states),
        workers=chosen.workers,
        protocol=condition.protocol,
        timing=condition.timing,
        videos=condition.file.with_suffix("") if chosen.videos else None,
        time_limit=seconds,
        render_devices=tuple(chosen.render_devices),
    )


@contextmanager
def policy_source(decoding: str, chosen: Namespace) -> Iterator[PolicySource]:
    """The expert, or a server in this process that all workers share."""
    if chosen.checkpoint == EXPERT:
        yield ScriptedExpert()
        return
    from bridge.server import PolicyServer
    from policy.decoding.config import DecodingConfig
    from policy.runtime import Policy

    config = DecodingConfig.load(decoding)

    def load(report: object) -> Policy:
        return Policy.load(chosen.checkpoint, chosen.unnorm_key, chosen.device, chosen.dtype, decoding=config)

    with PolicyServer(load, endpoint="tcp://127.0.0.1:*", max_batch=chosen.workers) as server:
        server.wait_ready()
        yield RemotePolicy(server.endpoint)


def report(sweep: SweepConfig, chosen: Namespace, console: Console) -> None:
    """Write and print what all runs so far have given."""
    found = {c.file: read_records(c.file) for c in sweep.conditions() if c.file.is_file()}
    records = [record for own in found.values() for record in own]
    if not records:
        raise SystemExit(f"{sweep.runs} has no episodes yet; give more time")
    cells = cells_of(records)
    rows = rows_of(cells)
    privileged = records[0].privileged
    shared = {"device": records[0].device, "dtype": records[0].dtype, "privileged": privileged}
    write_result(chosen.output, [row | shared for row in rows], headline(sweep, found, chosen.workers))
    title = "Success and latency" + ("; privileged: reads the simulator's state" if privileged else "")
    console.print(table_of(cells, rows, title))


def headline(sweep: SweepConfig, found: dict[Path, list[EpisodeRecord]], workers: int) -> dict[str, Any]:
    """Success of the named rows over all suites, static and moving, and seconds for 500 lock-step episodes."""
    rates: dict[str, dict[str, float | None]] = {"static": {}, "moving": {}}
    for name, row in sweep.rows.items():
        for drift in sweep.drifts:
            own = newest_by_key(found.get(sweep.condition(row, drift).file, ())).values()
            rates["moving" if drift else "static"][name] = success_columns(list(own))["rate"]
    free = [
        record.seconds
        for condition in sweep.conditions()
        if condition.latency in ("0", "lock-step") and not condition.protocol.drift_mm_s
        for record in found.get(condition.file, ())
    ]
    return rates | {"suite_seconds": SUITE_EPISODES * sum(free) / len(free) / workers if free else None}


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
