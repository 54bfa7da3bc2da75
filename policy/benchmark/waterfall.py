"""A plot of where a control step's time goes: one bar per row, one colour per stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policy.benchmark.control_steps import STAGES


def plot_stages(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Mean milliseconds by stage, and a mark for each row's bound. transformers counts its prompt as "decode"."""
    from matplotlib.figure import Figure  # only this needs it

    figure = Figure(figsize=(9, 1.6 + 0.6 * len(rows)), layout="constrained")
    axes = figure.subplots()
    names = [row["row"] for row in rows]
    left = [0.0] * len(rows)
    for stage in STAGES:
        widths = [row[f"{stage}_ms"] for row in rows]
        axes.barh(names, widths, left=left, label=stage)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.plot([row["bound_ms"] for row in rows], names, "k|", markersize=18, label="bound")
    for row, end in zip(rows, left, strict=True):
        axes.annotate(f" {row['mean_ms']:.1f} ms", (end, row["row"]), va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(left))
    axes.set_xlabel("milliseconds from image to action, mean")
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=len(STAGES) + 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
