"""Target passes per action against success, as a picture. Knows the rows of `sim.comparison`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.comparison import ALL_SUITES

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

PASSES = (1, 1.25, 1.5, 2, 3, 4, 5, 7)
FINISHED = 200  # episodes a suite; a row of fewer is drawn paler and no line leads through it


def plot_passes_and_success(rows: Sequence[Mapping[str, Any]], groups: Mapping[str, Sequence[str]], path: Path) -> None:
    """One panel per suite: success with its Wilson interval over passes, a line through each group of decoders.
    Rows of fewer episodes than `FINISHED`, where others have more, are paler and off the line.

    rows: of `comparison_rows`. groups: decoders that belong together, in order, by the name the legend gives them.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    suites = list(dict.fromkeys(row["suite"] for row in rows))
    columns = min(3, len(suites))
    lines = math.ceil(len(suites) / columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(5 * columns, 3.6 * lines), sharey=True, squeeze=False)
    colours = dict(zip(groups, pyplot.rcParams["axes.prop_cycle"].by_key()["color"] * len(groups), strict=False))
    handles: dict[str, Artist] = {}
    for panel, suite in itertools.zip_longest(axes.flat, suites):
        if suite is None:
            panel.axis("off")
            continue
        found = {row["decoding"]: row for row in rows if row["suite"] == suite and row["rate"] is not None}
        for group, names in groups.items():
            drawn = [found[name] for name in names if name in found and found[name]["passes"] is not None]
            if len(drawn) < 2:  # nothing but what all groups share
                continue
            wanted = FINISHED * (len(suites) - 1 if suite == ALL_SUITES else 1)
            handles[group] = _draw(panel, drawn, colours[group], wanted)
        panel.set_title(suite)
        panel.set_xlabel("target passes per action, prefill counted")
        panel.set_xscale("log")
        panel.set_xticks(PASSES, [f"{passes:g}" for passes in PASSES], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    for line in axes:
        line[0].set_ylabel("success, % (95 % Wilson interval)")
    space = axes.flat[-1] if len(suites) < lines * columns else axes.flat[0]
    space.legend(list(handles.values()), list(handles), fontsize="small", loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw(panel: Axes, rows: Sequence[Mapping[str, Any]], colour: str, wanted: int) -> Artist:
    """A line through what is finished, paler points for what is not; returns what the legend shows.

    wanted: episodes of a finished row, where any has as many.
    """
    wanted = min(wanted, max(row["episodes"] for row in rows))
    finished = [row for row in rows if row["episodes"] >= wanted]
    for row in rows:
        rate, low, high = (100 * row[name] for name in ("rate", "wilson95_low", "wilson95_high"))
        seen = 1.0 if row in finished else 0.3
        panel.errorbar(row["passes"], rate, [[rate - low], [high - rate]], fmt="o", capsize=2, color=colour, alpha=seen)
    ordered = sorted(finished, key=lambda row: row["passes"])
    passes, rates = [row["passes"] for row in ordered], [100 * row["rate"] for row in ordered]
    (line,) = panel.plot(passes, rates, color=colour, marker="o", markersize=4)
    return line
