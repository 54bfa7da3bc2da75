"""The tables of a report: figures by condition, speed-ups counted in two ways, and what it takes to repeat the runs.

Knows cells and records. Does not know HTML; a table is its headings and its rows of text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.cells import Cell, rows_of
from sim.records import EpisodeRecord, Outcome


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def success_table(cells: Sequence[Cell]) -> Table:
    """Success of every cell and its comparison with the one that waits least."""
    rows = []
    for cell, row in zip(cells, rows_of(cells), strict=True):
        interval = f"{100 * row['wilson95_low']:.1f}-{100 * row['wilson95_high']:.1f}"
        rate = "" if row["rate"] is None else f"{100 * row['rate']:.1f}"
        solved = f"{row['successes']}/{row['episodes']}"
        paired = (_number(row.get("points"), "+.1f"), _p_value(row.get("mcnemar_p")))
        latency = (_number(row["latency_p50_ms"], ".1f"), _number(row["latency_p95_ms"], ".1f"))
        rows.append(
            (cell.world, cell.decoder, cell.time, *latency, solved, rate, interval, *paired, str(row["errors"]))
        )
    headings = ("world", "decoder", "time", "p50 ms", "p95 ms", "solved", "%", "95 % interval", "points", "p", "errors")
    caption = (
        "Errors count neither way. Points and p: against the cell of the same world that waits least, on the same "
        "initial states, McNemar's exact test."
    )
    return Table("Success", caption, headings, tuple(rows))


def control_table(cells: Sequence[Cell]) -> Table:
    """How fresh the actions were and how the hand moved."""
    columns = {
        "completion_s": ("done after s", ".2f"),
        "effective_hz": ("Hz", ".1f"),
        "stale_share": ("stale", ".1%"),
        "hold_share": ("holding", ".1%"),
        "holds_per_episode": ("holds", ".0f"),
        "deadline_miss_share": ("missed", ".1%"),
        "dropped": ("dropped", "d"),
        "path_m": ("path m", ".2f"),
        "jerk_m_s3": ("jerk m/s3", ".0f"),
        "late_p95_ms": ("late ms", ".2f"),
    }
    told = [(cell, cell.row(None)) for cell in cells if any(record.control for record in cell.records)]
    rows = tuple(
        (cell.world, cell.decoder, cell.time, *(_number(row.get(name), form) for name, (_, form) in columns.items()))
        for cell, row in told
    )
    caption = (
        "Means over episodes, shares over ticks. Done after: solved episodes, simulated time. Stale: no action whose "
        "observation is at most one control period old. Holding: no action at all. Missed: decisions longer than a "
        "control period. Jerk: root mean square. Late: ticks of the real-time clock behind schedule, 95 %."
    )
    return Table("Control", caption, ("world", "decoder", "time", *(name for name, _ in columns.values())), rows)


def speedup_table(cells: Sequence[Cell]) -> Table:
    """Speed-up over the slowest cell of the world, in latency and in time per episode, by which episodes count."""
    rows = []
    for world in dict.fromkeys(cell.world for cell in cells):
        own = [cell for cell in cells if cell.world == world and len(cell.decision_ms)]
        slowest = max(own, key=lambda cell: float(np.mean(cell.decision_ms)), default=None)
        if slowest is not None and len(own) > 1:
            rows += [(cell.world, cell.decoder, cell.time, *_speedups(cell, slowest)) for cell in own]
    headings = ("world", "decoder", "time", "latency, all", "latency, solved", "episode, all", "episode, solved")
    caption = (
        "Against the slowest cell of the same world. All: over all episodes, where failures, which last longest, weigh "
        "most. Solved: over the episodes that both cells solved. Latency: mean milliseconds a decision, measured ones "
        "on the lock-step clock. Episode: mean simulated seconds."
    )
    return Table("Speed-up, counted in two ways", caption, headings, tuple(rows))


def _speedups(cell: Cell, slowest: Cell) -> Iterable[str]:
    ours, theirs = _by_episode(cell.records), _by_episode(slowest.records)
    shared = [place for place in ours if place in theirs]
    solved = [p for p in shared if ours[p].outcome is theirs[p].outcome is Outcome.SUCCESS]
    timed = {p for p in shared if ours[p].decision_ms and theirs[p].decision_ms}
    for measure in (_decision_ms, _episode_s):
        for chosen in (shared, solved):
            places = [p for p in chosen if p in timed] if measure is _decision_ms else chosen
            mine, other = measure([ours[p] for p in places]), measure([theirs[p] for p in places])
            yield f"{other / mine:.2f}x" if mine and other else ""


def _by_episode(records: Iterable[EpisodeRecord]) -> dict[tuple[str, int, int], EpisodeRecord]:
    return {(r.suite, r.task, r.init_state): r for r in records if r.outcome is not Outcome.ERROR}


def _decision_ms(records: Sequence[EpisodeRecord]) -> float:
    decisions = [milliseconds for record in records for milliseconds in record.decision_ms]
    return float(np.mean(decisions)) if decisions else 0.0


def _episode_s(records: Sequence[EpisodeRecord]) -> float:
    seconds = [record.control.simulated_s for record in records if record.control]
    return float(np.mean(seconds)) if seconds else 0.0


def origin_table(records: Sequence[EpisodeRecord]) -> Table:
    """What it takes to run the episodes again."""

    def told(values: Iterable[Any]) -> str:
        return "\n".join(dict.fromkeys(str(value) for value in values if value not in ("", {}, ())))

    versions = sorted({f"{name} {version}" for record in records for name, version in record.versions.items()})
    finished = [record.finished_at for record in records]
    rows = {
        "command": told(record.command for record in records),
        "commit": told(record.commit for record in records),
        "hardware": told(record.machine for record in records),
        "policy": told(f"{r.policy_id} on {r.device} in {r.dtype}" for r in records),
        "weights": told(record.checkpoint_hash for record in records),
        "privileged": told(record.privileged for record in records),
        "simulator seed": told(record.seed for record in records),
        "renderer": told(record.renderer for record in records),
        "protocol": told("; ".join(record.deviations) for record in records),
        "versions": ", ".join(versions),
        "finished": f"{min(finished)} to {max(finished)}",
        "episodes": str(len(records)),
    }
    return Table("To repeat it", "", ("what", "value"), tuple(rows.items()))


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _p_value(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else _number(value, ".3f")
