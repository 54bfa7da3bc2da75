#!/usr/bin/env python3
"""How fast a control step is on this machine, row by row, and how near to what its memory and arithmetic allow.

    python scripts/benchmark.py DEMOS --shape 7b --time-limit 560
    python scripts/benchmark.py DEMOS --rows "graph autoregressive" exact relaxed --steps 50
    python scripts/benchmark.py DEMOS --shape 7b --rows --passes all

DEMOS is a folder of demonstrations with frames; the first warms, the others are measured in order. Run it again to go
on where the time limit stopped it; the result and the plot are written from all rows that are there.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from policy.acceleration.plan import AS_LOADED, Attention, Precision, fastest, preset
from policy.benchmark.control_steps import STAGES, Steps, compared, measure_steps, row_of
from policy.benchmark.cost import Machine, StepCost
from policy.benchmark.machine import measure_machine
from policy.benchmark.passes import ARRANGEMENTS, measure_passes
from policy.benchmark.subject import TRANSFORMERS, Arrangement, Episode, Shape, Subject
from policy.benchmark.waterfall import plot_stages
from policy.decoding.physical import ActionUnits
from policy.hardware import choose_device, choose_dtype, limit_memory
from policy.openvla.checkpoint import checkpoint_hash, locate_checkpoint
from policy.openvla.config import PATCHES, OpenVLAConfig
from policy.results import commit, hardware, write_result
from policy.training.demonstrations import list_demonstrations

EAGER, GRAPHS = "transformers eager", "graph autoregressive"
SHAPES = {"own": "the checkpoint's own sizes", "7b": "OpenVLA-7B's sizes"}
_UNLIMITED = 1e9
COLUMNS = (
    *("mean_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms"),
    *(f"{stage}_ms" for stage in STAGES),
    *("passes", "bound_ms", "percent_of_bound", "speedup_over_eager", "speedup_over_graph_ar"),
    *("token_agreement", "deviation_mm", "deviation_mrad", "memory_gb", "start_s"),
)


def arrangements(chosen: Namespace) -> dict[str, Arrangement]:
    """The table's rows by name, from the baseline to the fastest."""
    device = choose_device(chosen.device)
    auto = fastest(device) if device.type == "cuda" else "joined"
    fast = preset(auto if chosen.acceleration == "auto" else chosen.acceleration)
    fast = replace(fast, attention=chosen.attention)
    int8, float8 = replace(fast, precision="int8"), replace(fast, precision="fp8")
    rows = (
        Arrangement(EAGER, TRANSFORMERS, AS_LOADED, capture=False),
        Arrangement("plain eager", "autoregressive", AS_LOADED, capture=False),
        Arrangement(GRAPHS, "autoregressive", fast),
        Arrangement("exact", "exact", fast),
        Arrangement("relaxed", "default", fast),
        Arrangement("int8 autoregressive", "autoregressive", int8),
        Arrangement("int8 relaxed", "default", int8),
        Arrangement("fp8 autoregressive", "autoregressive", float8),
        Arrangement("fp8 relaxed", "default", float8),
    )
    return {row.name: row for row in rows}


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demonstrations", type=Path, help="folder of demonstrations with frames, at least two")
    parser.add_argument("--checkpoint", type=str, default="policy/pretrained/libero", help="directory or hub id")
    parser.add_argument("--unnorm-key", type=str | None, default=None, help="dataset statistics")
    parser.add_argument("--shape", type=Shape, default="own", help="7b: widened on the device to OpenVLA-7B's sizes")
    parser.add_argument("--device", type=str, default="auto")
    parser.add_argument("--dtype", type=str, default="auto", help="auto, float32 or bfloat16")
    parser.add_argument(
        "--gpu-memory-gb", type=float | None, default=None, help="most that rows may take, as on a smaller GPU"
    )
    parser.add_argument("--rows", nargs="*", type=str, default=None, help="rows to measure, all unless given")
    parser.add_argument("--passes", nargs="*", type=str, default=[], help='single passes to time by name, or "all"')
    parser.add_argument(
        "--acceleration", type=str, default="auto", help="of the rows with graphs: auto, joined, compiled or skinny"
    )
    parser.add_argument("--attention", type=Attention, default="auto", help="kernel in the rows with graphs")
    parser.add_argument("--episodes", type=int, default=5, help="demonstrations to use, the first for warming")
    parser.add_argument("--steps", type=int, default=80, help="most frames of each")
    parser.add_argument("--time-limit", type=float, default=_UNLIMITED, help="seconds after which no row begins")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"), help="folder of finished rows")
    parser.add_argument("--output", type=Path, default=Path("docs/results/speed.json"))
    return parser


def main() -> int:
    parser, console = make_parser(), Console()
    chosen = parser.parse_args()
    try:
        rows = arrangements(chosen)
    except ValueError as error:
        parser.error(str(error))
    names = list(rows) if chosen.rows is None else chosen.rows
    passes = list(ARRANGEMENTS) if chosen.passes == ["all"] else chosen.passes
    if unknown := sorted((set(names) - set(rows)) | (set(passes) - set(ARRANGEMENTS))):
        parser.error(f"there is no {', '.join(unknown)}; rows are {', '.join(rows)}; passes {', '.join(ARRANGEMENTS)}")
    try:
        benchmark = Benchmark(chosen, console)
        failed = benchmark.run([rows[name] for name in names], passes)
        benchmark.report(rows)
    except (ValueError, FileNotFoundError) as error:
        console.print(f"cannot measure: {error}", style="red", markup=False, highlight=False)
        return 2
    return 1 if failed else 0


class Benchmark:
    """Rows and passes that were measured under the same settings, kept in a folder."""

    def __init__(self, chosen: Namespace, console: Console) -> None:
        self._chosen, self._console = chosen, console
        self._deadline = time.monotonic() + chosen.time_limit
        device = choose_device(chosen.device)
        if chosen.gpu_memory_gb is not None:
            limit_memory(device, chosen.gpu_memory_gb)
        directory = locate_checkpoint(chosen.checkpoint)
        self._subject = Subject(directory, device, choose_dtype(chosen.dtype, device), chosen.shape, chosen.unnorm_key)
        paths = list_demonstrations(chosen.demonstrations)[: chosen.episodes]
        if len(paths) < 2:
            raise ValueError(f"{chosen.demonstrations} has {len(paths)} demonstrations; need one to warm and one more")
        self._episodes = [Episode.load(path, chosen.steps) for path in paths]
        self._prompt = PATCHES + self._subject.longest_prompt(self._episodes)
        self._settings = {
            "commit": commit(),
            "hardware": hardware(),
            "checkpoint_hash": checkpoint_hash(directory),
            "shape": chosen.shape,
            "device": str(device),
            "gpu_memory_gb": chosen.gpu_memory_gb,
            "dtype": str(self._subject.dtype).removeprefix("torch."),
            "episodes": [episode.name for episode in self._episodes],
            "frames": sum(len(episode.frames) for episode in self._episodes[1:]),
        }
        self._config: OpenVLAConfig = self._subject.target_config()
        self._machine = self._measured_machine()

    def run(self, rows: list[Arrangement], passes: list[str]) -> list[str]:
        """Measure what is not there yet, as far as the time goes; the names of rows that failed."""
        failed = []
        for row in rows:
            if self._begins(row.name, asdict(row)):
                try:
                    found = measure_steps(self._subject, row, self._episodes)
                except Exception:  # a kernel that this machine lacks must not cost the other rows
                    failed.append(row.name)
                    self._console.print(f"{row.name} failed:\n{traceback.format_exc()}", style="red", markup=False)
                else:
                    self._keep(row.name, asdict(row), found.to_json())
        for name in passes:
            if self._begins(f"pass {name}", {}):
                subject, model = self._subject, (self._config, self._prompt)
                timed = measure_passes(*model, name, self._machine, subject.device, subject.dtype)
                self._keep(f"pass {name}", {}, timed)
                self._console.print(timed, highlight=False)
        return failed

    def report(self, rows: dict[str, Arrangement]) -> None:
        """Table, plot and result file of all that is there. Raises ValueError where that is nothing."""
        steps = {name: Steps(**kept) for name, row in rows.items() if (kept := self._kept(name, asdict(row)))}
        passes = [kept for name in ARRANGEMENTS if (kept := self._kept(f"pass {name}", {}))]
        table = [self._row(rows[name], found, steps) for name, found in steps.items()]
        if not table and not passes:
            raise ValueError(f"{self._chosen.runs} has no row with these settings; give more time")
        device = (self._settings["hardware"].get("gpu") or [self._settings["hardware"]["cpu"]])[0]
        if table:
            plot_stages(
                table, self._chosen.output.with_suffix(".png"), f"One action, {SHAPES[self._chosen.shape]}, {device}"
            )
        shared = {key: self._settings[key] for key in ("shape", "device", "dtype", "checkpoint_hash")}
        write_result(self._chosen.output, [row | shared for row in table + passes], self._headline(table))
        self._console.print(table_of(table))

    def _row(self, arrangement: Arrangement, found: Steps, steps: dict[str, Steps]) -> dict[str, Any]:
        row = row_of(found, self._machine, self._cost(arrangement.acceleration.precision))
        for name, column in ((EAGER, "speedup_over_eager"), (GRAPHS, "speedup_over_graph_ar")):
            reference = steps.get(name)
            mean = sum(reference.milliseconds) / len(reference.milliseconds) if reference else None
            row[column] = mean / row["mean_ms"] if mean else None
        if reference := steps.get(GRAPHS):
            units = ActionUnits.from_statistics(self._subject.statistics(), None)
            row |= compared(found, reference, units, self._config.action_vocabulary)
        return row | {
            "decoding": arrangement.decoding,
            "capture": arrangement.capture,
            **asdict(arrangement.acceleration),
        }

    def _headline(self, table: list[dict[str, Any]]) -> dict[str, float | None]:
        by_name = {row["row"]: row for row in table}
        wanted = {
            "eager_ms": (EAGER, "mean_ms"),
            "graph_ar_ms": (GRAPHS, "mean_ms"),
            "exact_mean_ms": ("exact", "mean_ms"),
            "relaxed_mean_ms": ("relaxed", "mean_ms"),
            "relaxed_median_ms": ("relaxed", "p50_ms"),
            "int8_relaxed_mean_ms": ("int8 relaxed", "mean_ms"),
            "fp8_relaxed_mean_ms": ("fp8 relaxed", "mean_ms"),
        }
        found = {key: by_name.get(name, {}).get(column) for key, (name, column) in wanted.items()}
        bounds = {"bound_ar_ms": self._bound(7), "bound_one_pass_ms": self._bound(1)}
        machine = {
            "copy_tb_per_s": self._machine.bytes_per_second / 1e12,
            "matmul_tflop_per_s": self._machine.operations_per_second / 1e12,
        }
        return found | bounds | machine

    def _bound(self, passes: int) -> float:
        return self._cost("full").bound_ms(self._machine, passes)

    def _cost(self, precision: Precision) -> StepCost:
        return StepCost(self._config, self._prompt, self._subject.dtype.itemsize, precision)

    def _measured_machine(self) -> Machine:
        if (kept := self._kept("machine", {})) is None:
            kept = asdict(measure_machine(self._subject.device, self._subject.dtype))
            self._keep("machine", {}, kept)
        return Machine(**kept)

    def _begins(self, name: str, arrangement: dict[str, Any]) -> bool:
        """Whether to measure this row now; says so. Lets go of what the last one held."""
        gc.collect()
        left = self._deadline - time.monotonic()
        if self._kept(name, arrangement) is not None or left <= 0:
            return False
        limited = f" ({left:.0f} s left)" if left < _UNLIMITED / 2 else ""
        self._console.print(f"measuring {name}{limited}", highlight=False)
        return True

    def _file(self, name: str) -> Path:
        return self._chosen.runs / f"{name.replace(',', '').replace(' ', '-')}.json"

    def _kept(self, name: str, arrangement: dict[str, Any]) -> dict[str, Any] | None:
        """What was measured before, unless under other settings."""
        if not self._file(name).is_file():
            return None
        content = json.loads(self._file(name).read_text())
        return content["found"] if content["settings"] == self._settings | {"arrangement": arrangement} else None

    def _keep(self, name: str, arrangement: dict[str, Any], found: dict[str, Any]) -> None:
        self._file(name).parent.mkdir(parents=True, exist_ok=True)
        content = {"settings": self._settings | {"arrangement": arrangement}, "found": found}
        self._file(name).write_text(json.dumps(content))


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="One action, image to action, milliseconds")
    table.add_column(no_wrap=True)
    for row in rows:
        table.add_column(row["row"], justify="right")
    for column in COLUMNS:
        cells = [row.get(column) for row in rows]
        table.add_row(column.removesuffix("_ms"), *("" if cell is None else f"{cell:.2f}" for cell in cells))
    return table


if __name__ == "__main__":
    sys.exit(main())
