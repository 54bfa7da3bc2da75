"""The figures of a report: what latency costs, how latencies are spread, and how decoders came by their tokens.

Knows cells (`sim.cells`) and matplotlib. Does not know files or HTML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from policy.types import ACTION_NAMES
from sim.cells import Cell
from sim.comparison import success_columns
from sim.decoding_statistics import DecodingStatistics
from sim.records import LOCK_STEP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which all eyes can tell apart, less black and yellow, which need a light or a dark page; the
# blue is a little lighter for the same reason.
COLOURS = ("#1F86C9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "Ds^vpX"


@dataclass(frozen=True, slots=True)
class Drawing:
    """name: of the file. title, caption: in words. figure: one panel."""

    name: str
    title: str
    caption: str
    figure: Figure


def drawings(cells: Sequence[Cell]) -> Iterator[Drawing]:
    """All figures that these cells have the numbers for."""
    worlds = list(dict.fromkeys(cell.world for cell in cells))
    for world in worlds:
        own = [cell for cell in cells if cell.world == world and rate_of(cell) is not None]
        slug = world.replace(", ", "-").replace("=", "-").replace(" ", "-")
        timed = [cell for cell in own if cell.control_latency]
        if timed:
            yield Drawing(
                f"success-latency-{slug}",
                f"Success and control latency: {world}",
                "Success with its 95 % Wilson interval. Lines: every decision is charged the same milliseconds. Single "
                "marks: measured or replayed latencies, at their median, with a bar to their 95 % quantile. Dotted: "
                "the world waits (lock-step).",
                _panel(partial(_success_over_latency, cells=timed)),
            )
        if own:
            yield Drawing(
                f"success-rate-{slug}",
                f"Success and control rate: {world}",
                "Success over the rate at which actions were begun; up and to the right is better.",
                _panel(partial(_success_over_rate, cells=own)),
            )
    measured = [cell for cell in cells if not cell.injected and len(cell.decision_ms)]
    if measured:
        caption = "Share of decisions that were there in time. Measured and replayed latencies only."
        figure = _panel(partial(_latency_distribution, cells=measured))
        yield Drawing("latency-distribution", "Latency of decisions", caption, figure)
    decoded = decoding_by_decoder(cells)
    if decoded:
        yield from _decoding_drawings(decoded)


def decoding_by_decoder(cells: Sequence[Cell]) -> dict[str, DecodingStatistics]:
    """How all actions of each decoder came about, over all its cells."""
    parts: dict[str, list[DecodingStatistics]] = {}
    for cell in cells:
        parts.setdefault(cell.decoder, []).extend(r.decoding for r in cell.records if r.decoding)
    return {decoder: DecodingStatistics.total(own) for decoder, own in parts.items() if own}


def rate_of(cell: Cell) -> float | None:
    """Success rate, None without a valid episode."""
    return success_columns(cell.records)["rate"]


def _decoding_drawings(decoded: dict[str, DecodingStatistics]) -> Iterator[Drawing]:
    passes = {name: np.array(total.passes) / total.actions for name, total in decoded.items()}
    colours = dict(zip(decoded, cycle(COLOURS), strict=False))
    drafted = {name: total for name, total in decoded.items() if any(total.drafted)}
    accepted = {name: np.array(total.drafted) / total.actions for name, total in drafted.items()}
    deviation = {name: np.array(total.absolute_deviation) / total.actions for name, total in drafted.items()}
    yield Drawing(
        "passes",
        "Target passes per action",
        "Share of actions by the forward passes of the target that they took, the prefill counted; seven is plain.",
        _panel(lambda axes: _bars(axes, passes, colours, [str(n) for n in range(1, 8)], "passes", "share of actions")),
    )
    if not drafted:
        return
    yield Drawing(
        "acceptance",
        "Acceptance by dimension",
        "Share of actions whose token of this dimension was accepted from a draft.",
        _panel(lambda axes: _bars(axes, accepted, colours, list(ACTION_NAMES), "", "share of actions")),
    )
    yield Drawing(
        "deviation",
        "Deviation by dimension",
        "Mean distance of the executed token from the target's own choice, in bins; exact decoders have none.",
        _panel(lambda axes: _bars(axes, deviation, colours, list(ACTION_NAMES), "", "bins")),
    )


def _panel(draw: Callable[[Axes], None]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    named = len(axes.get_legend_handles_labels()[0])
    if named:
        figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    figure.set_size_inches(5.0, 3.4 + 0.2 * math.ceil(named / 2))
    return figure


def _success_axis(axes: Axes) -> None:
    axes.set_ylabel("success, %")
    axes.set_ylim(-3, 103)


def _interval(cell: Cell) -> tuple[float, list[list[float]]]:
    """Success in percent, and the interval as lengths below and above, as matplotlib wants it."""
    found = success_columns(cell.records)
    rate, low, high = (100 * found[name] for name in ("rate", "wilson95_low", "wilson95_high"))
    return rate, [[rate - low], [high - rate]]


def _success_over_latency(axes: Axes, cells: Sequence[Cell]) -> None:
    decoders = list(dict.fromkeys(cell.decoder for cell in cells))
    for index, decoder in enumerate(decoders):
        colour = COLOURS[index % len(COLOURS)]
        own = sorted((c for c in cells if c.decoder == decoder), key=lambda c: c.wait_ms)
        for kind in dict.fromkeys(_other_conditions(cell) for cell in own if cell.injected):
            curve = [cell for cell in own if cell.injected and _other_conditions(cell) == kind]
            rates, lengths = zip(*(_interval(cell) for cell in curve), strict=True)
            middle = [cell.wait_ms for cell in curve]
            label = ", ".join(part for part in (decoder, kind) if part)
            axes.errorbar(middle, rates, yerr=np.hstack(lengths), color=colour, marker="o", capsize=2, label=label)
        for cell in own:
            if cell.clock == LOCK_STEP:
                axes.axhline(_interval(cell)[0], color=colour, linestyle=":", label=f"{decoder}, lock-step")
        markers = cycle(MARKERS)
        for cell in own:
            if cell.clock != LOCK_STEP and not cell.injected:
                _mark(axes, cell, colour, next(markers))
    axes.set_xlabel("control latency, ms")
    _success_axis(axes)


def _mark(axes: Axes, cell: Cell, colour: str, marker: str) -> None:
    """A measured or replayed latency: its median, and a bar to its 95 % quantile."""
    latency, (rate, length) = cell.control_latency, _interval(cell)
    assert latency is not None
    axes.errorbar(
        latency.p50_ms,
        rate,
        yerr=length,
        color=colour,
        marker=marker,
        capsize=2,
        linestyle="none",
        label=f"{short_name(cell)} ({cell.decoder})",
    )
    axes.plot([latency.p50_ms, latency.p95_ms], [rate, rate], color=colour, linewidth=3, alpha=0.5)


def _success_over_rate(axes: Axes, cells: Sequence[Cell]) -> None:
    for index, decoder in enumerate(dict.fromkeys(cell.decoder for cell in cells)):
        found = [cell for cell in cells if cell.decoder == decoder and any(r.control for r in cell.records)]
        points = sorted(((cell.row(None)["effective_hz"], *_interval(cell)) for cell in found), key=lambda p: p[0])
        if points:
            hertz, rates, lengths = zip(*points, strict=True)
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            axes.errorbar(
                hertz,
                rates,
                np.hstack(lengths),
                capsize=2,
                linestyle="none",
                label=decoder,
                color=colour,
                marker=marker,
            )
    axes.set_xlabel("actions begun per simulated second, Hz")
    _success_axis(axes)


def _latency_distribution(axes: Axes, cells: Sequence[Cell]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    pooled: dict[str, list[np.ndarray]] = {}
    for cell in cells:
        pooled.setdefault(f"{short_name(cell)} ({cell.decoder})", []).append(cell.decision_ms)
    for index, (name, parts) in enumerate(pooled.items()):
        milliseconds = np.sort(np.concatenate(parts))
        shares = np.arange(1, len(milliseconds) + 1) / len(milliseconds)
        kept = np.unique(np.linspace(0, len(milliseconds) - 1, 400).astype(int))  # enough for the eye
        axes.step(milliseconds[kept], 100 * shares[kept], where="post", color=COLOURS[index % len(COLOURS)], label=name)
    axes.set_xlabel("latency, ms")
    axes.set_ylabel("decisions, %")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _bars(
    axes: Axes, series: dict[str, np.ndarray], colours: dict[str, str], ticks: list[str], below: str, beside: str
) -> None:
    """Bars side by side, one per series at each tick."""
    width = 0.8 / len(series)
    for index, (name, values) in enumerate(series.items()):
        left = np.arange(len(ticks)) - 0.4 + (index + 0.5) * width
        axes.bar(left, values, width, color=colours[name], label=name)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(below)
    axes.set_ylabel(beside)


def short_name(cell: Cell) -> str:
    """How a mark is called in a figure: a trace by its file's name, others by what was said of their latency."""
    words = cell.latency.split()
    return words[1] if words[0] == "trace" else "lock-step" if cell.clock == LOCK_STEP else cell.latency


def _other_conditions(cell: Cell) -> str:
    """What of the timing tells two curves apart: all but the latency."""
    return ", ".join(part for part in cell.records[0].timing if not part.startswith("latency "))
