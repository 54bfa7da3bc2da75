"""Target passes per action against success, as a picture. Knows the rows of `sim.comparison`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def plot_passes_and_success(rows: Sequence[Mapping[str, Any]], groups: Mapping[str, Sequence[str]], path: Path) -> None:
    """One panel per suite: success with its Wilson interval over passes, a line through each group of decoders.

    rows: of `comparison_rows`. groups: decoders that belong together, in order, by the name the legend gives them.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    suites = list(dict.fromkeys(row["suite"] for row in rows))
    figure, axes = pyplot.subplots(1, len(suites), figsize=(5 * len(suites), 4), sharey=True, squeeze=False)
    for panel, suite in zip(axes[0], suites, strict=True):
        found = {row["decoding"]: row for row in rows if row["suite"] == suite and row["rate"] is not None}
        for group, names in groups.items():
            drawn = [found[name] for name in names if name in found and found[name]["passes"] is not None]
            if not drawn:
                continue
            passes, rates = [row["passes"] for row in drawn], [100 * row["rate"] for row in drawn]
            below = [100 * (row["rate"] - row["wilson95_low"]) for row in drawn]
            above = [100 * (row["wilson95_high"] - row["rate"]) for row in drawn]
            panel.errorbar(passes, rates, yerr=[below, above], marker="o", capsize=2, label=group)
        panel.set_title(suite)
        panel.set_xlabel("target passes per action, prefill counted")
        panel.grid(alpha=0.3)
    axes[0][0].set_ylabel("success, % (95 % Wilson interval)")
    axes[0][-1].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
