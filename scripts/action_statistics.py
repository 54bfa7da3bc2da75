#!/usr/bin/env python3
"""Tell how lively demonstrations are.

    python scripts/action_statistics.py demos --summary docs/results/action-statistics.json

Per suite, for episodes with and without noise: how often each dimension of the label stays in its bin from one step to
the next, how far it moves, and how often the whole action repeats, beside what is published.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from policy.openvla.action_tokens import ActionStatistics, load_statistics, select_statistics
from policy.results import write_result
from policy.training.demonstrations import Demonstration, list_demonstrations
from policy.training.liveliness import DIMENSIONS, PUBLISHED_REPETITION, RADII, bin_range, liveliness


def read_labels(directory: Path) -> dict[tuple[str, bool], list[np.ndarray]]:
    """The labels of all episodes, by suite and by whether their executed actions were disturbed."""
    labels = defaultdict(list)
    for path in list_demonstrations(directory):
        demonstration = Demonstration.load(path)
        demonstration.require_every_step()
        labels[demonstration.meta.suite, demonstration.meta.noise > 0].append(demonstration.actions)
    return dict(sorted(labels.items()))


def measure(labels: dict[tuple[str, bool], list[np.ndarray]], bins: ActionStatistics | None) -> list[dict[str, object]]:
    """One row per suite, kind of episode and dimension; without `bins` each suite has bins of its own, as published."""
    rows: list[dict[str, object]] = []
    for (suite, noisy), episodes in labels.items():
        whole_suite = [episode for (name, _), found in labels.items() if name == suite for episode in found]
        lively = liveliness(episodes, bins or bin_range(whole_suite))
        kinds = {"suite": suite, "noise": noisy, "episodes": len(episodes)}
        for name, movement in zip((*DIMENSIONS, "all seven"), (*lively.dimensions, lively.whole), strict=True):
            rows.append(kinds | {"dimension": name} | movement.row())
    return rows


def table(rows: list[dict[str, object]]) -> Table:
    columns = {"repeats": "repeats"} | {f"within_{radius}": f"≤ {radius}" for radius in RADII}
    columns |= {"median_bins": "median", "p90_bins": "p90"}
    headers = ("suite", "noise", "dimension", *columns.values())
    result = Table(*headers, title="from one label to the next: share of steps that move so few bins, and distances")
    for row in rows:
        result.add_row(
            str(row["suite"]),
            "yes" if row["noise"] else "no",
            str(row["dimension"]),
            *(f"{row[column]:.3g}" for column in columns),
        )
    return result


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demonstrations", type=Path, help="folder with recorded episodes, with or without frames")
    parser.add_argument("--checkpoint", type=Path | None, default=None, help="take the bins of this policy")
    parser.add_argument("--summary", type=Path | None, default=None, help="JSON file for the table")
    return parser


def main() -> None:
    parser = make_parser()
    chosen = parser.parse_args()
    labels = read_labels(chosen.demonstrations)
    if not labels:
        parser.error(f"no demonstrations in {chosen.demonstrations}")
    bins = select_statistics(load_statistics(chosen.checkpoint), None) if chosen.checkpoint else None
    rows = measure(labels, bins)
    console = Console()
    console.print(table(rows))
    low, high = PUBLISHED_REPETITION
    console.print(f"published: all seven repeat in {low:.1%} to {high:.1%} (OpenVLA trained on human demonstrations)")
    if chosen.summary:
        whole = [row for row in rows if row["dimension"] == "all seven"]
        repetition = {f"{row['suite']}{' with noise' if row['noise'] else ''}": row["repeats"] for row in whole}
        write_result(chosen.summary, rows, {"whole_action_repeats": repetition, "published": PUBLISHED_REPETITION})


if __name__ == "__main__":
    main()
