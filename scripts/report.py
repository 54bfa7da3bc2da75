"""Make a page, pictures and a table of evaluations: what latency costs, and what each decoder makes of it.

    python scripts/report.py runs/latency                     # a folder of JSONL files
    python scripts/report.py runs/a.jsonl runs/b.jsonl --output docs/results/latency

Writes index.html, which needs no other file and no network, a PNG of every figure, and cells.csv.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from sim.cells import cells_of, rows_of
from sim.newest_records import newest_by_key
from sim.records import EpisodeRecord, read_records
from sim.report.figures import drawings
from sim.report.films import film_rows
from sim.report.page import html_page
from sim.report.tables import control_table, origin_table, speedup_table, success_table


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="JSONL files of episodes, or folders of them")
    parser.add_argument(
        "--output", type=Path | None, default=None, help="folder; `report` beside the runs if not given"
    )
    parser.add_argument("--title", type=str, default="Success and control latency")
    parser.add_argument("--films-per-world", type=int, default=1, help="initial states shown side by side")
    return parser


def main() -> None:
    chosen = make_parser().parse_args()
    try:
        runs = read_runs(chosen.runs)
    except (OSError, ValueError) as error:
        raise SystemExit(f"cannot report: {error}") from None
    first = chosen.runs[0]
    output: Path = chosen.output or (first if first.is_dir() else first.parent) / "report"
    output.mkdir(parents=True, exist_ok=True)
    records = [record for own in runs.values() for record in own]
    cells = cells_of(records)
    drawn = list(drawings(cells))
    for drawing in drawn:
        drawing.figure.savefig(output / f"{drawing.name}.png", dpi=150)
    tables = (success_table(cells), control_table(cells), speedup_table(cells))
    films = film_rows(runs, chosen.films_per_world)
    page = html_page(chosen.title, lead_of(records), drawn, films, tables, origin_table(records))
    (output / "index.html").write_text(page, encoding="utf-8")
    write_csv(output / "cells.csv", rows_of(cells))
    figures = f"{len(drawn)} figures, {sum(len(row.films) for row in films)} films"
    Console().print(f"{output / 'index.html'}: {len(records)} episodes, {len(cells)} cells, {figures}", highlight=False)


def read_runs(paths: list[Path]) -> dict[Path, list[EpisodeRecord]]:
    """The newest record of every episode, by file. Raises ValueError where there is none or a file is of else."""
    files = [file for path in paths for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    found = {file: list(newest_by_key(read_records(file)).values()) for file in files}
    if not any(found.values()):
        raise ValueError(
            f"no episodes in {', '.join(map(str, paths))}; give JSONL files of evaluations, or their folder"
        )
    return found


def lead_of(records: list[EpisodeRecord]) -> str:
    """What the page is about, in a sentence; privileged policies are named as such."""
    policies = ", ".join(dict.fromkeys(record.policy_id for record in records))
    warning = "; privileged: reads the simulator's state" if any(record.privileged for record in records) else ""
    return f"{len(records)} episodes of {policies}{warning}, to {max(record.finished_at for record in records)}."


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
