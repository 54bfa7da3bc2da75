"""Episodes by the conditions they ran under, and the figures of each condition.

A cell is what an experiment compares: one suite as the protocol has it, one policy and decoder, one clock with its
latencies. Knows records; does not know how they were run or how they are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim.comparison import paired_columns, success_columns
from sim.episode_key import Settings
from sim.newest_records import by_settings, newest_by_key
from sim.protocol import SEEDED_EVERY_EPISODE
from sim.records import LOCK_STEP, EpisodeRecord, Latency, Outcome


@dataclass(frozen=True, slots=True)
class Cell:
    """The episodes of one condition, at least one.

    world: the suite, and what differs from the official protocol. decoder: how tokens were chosen, and in what the
    policy's settings differ where a decoder was run with several. time: the clock and its conditions in words, e.g.
    "charged, latency 150 ms".
    """

    world: str
    policy: str
    decoder: str
    time: str
    records: tuple[EpisodeRecord, ...]

    @property
    def clock(self) -> str:
        return self.records[0].clock

    @property
    def latency(self) -> str:
        """The latency in words: "150 ms", "trace eager 0a1b2c", or the clock's name where there is none to choose."""
        told = [part for part in self.records[0].timing if part.startswith("latency ")]
        return told[0].removeprefix("latency ") if told else self.clock

    @property
    def injected(self) -> bool:
        """Whether every decision was charged with the same milliseconds."""
        return self.latency.endswith(" ms") and self.latency.split()[0].replace(".", "", 1).isdigit()

    @property
    def decision_ms(self) -> np.ndarray:
        """Latency of every decision of every episode that tells, float64 `[decisions]`; measured ones on the lock-step
        clock.
        """
        return np.concatenate([np.asarray(record.decision_ms, float) for record in self.records])

    @property
    def control_latency(self) -> Latency | None:
        """What the world was made to wait: nothing on the lock-step clock, which stands still; None where no episode
        tells.
        """
        if self.clock == LOCK_STEP:
            return Latency(0.0, 0.0, 0.0, 0.0)
        charged = self.decision_ms
        return Latency.of(charged.tolist()) if len(charged) else None

    @property
    def wait_ms(self) -> float:
        """Orders cells by the median of what the world waited; infinite where that is not known."""
        latency = self.control_latency
        return latency.p50_ms if latency else math.inf

    def row(self, baseline: Cell | None) -> dict[str, Any]:
        """One flat row for a table; None for numbers that do not exist. Paired with `baseline` by initial state."""
        latency = self.control_latency
        named = {
            "world": self.world,
            "policy": self.policy,
            "decoder": self.decoder,
            "time": self.time,
            "latency_p50_ms": round(latency.p50_ms, 2) if latency else None,
            "latency_p95_ms": round(latency.p95_ms, 2) if latency else None,
        }
        row = named | success_columns(self.records) | self._control()
        if baseline is not None and baseline is not self:
            row |= {"baseline": baseline.time} | paired_columns(self.records, baseline.records)
        return row

    def _control(self) -> dict[str, float | None]:
        """Means over valid episodes; shares and rates over all their ticks together."""
        held = [record.control for record in self.records if record.control]
        ticks = sum(control.ticks for control in held)
        if not ticks:
            return {}
        timed = [record for record in self.records if record.control and record.decision_ms]
        asked = sum(len(record.decision_ms) for record in timed)
        missed = sum(record.control.deadline_misses for record in timed if record.control)
        seconds = sum(control.simulated_s for control in held)
        solved = [r.control.simulated_s for r in self.records if r.control and r.outcome is Outcome.SUCCESS]
        return {
            "completion_s": round(float(np.mean(solved)), 3) if solved else None,
            "effective_hz": round(sum(control.decisions for control in held) / seconds, 3),
            "stale_share": round(sum(control.stale for control in held) / ticks, 4),
            "hold_share": round(sum(control.holds for control in held) / ticks, 4),
            "holds_per_episode": round(sum(control.holds for control in held) / len(held), 2),
            "deadline_miss_share": round(missed / asked, 4) if asked else None,
            "dropped": sum(control.dropped for control in held),
            "path_m": round(float(np.mean([control.path_m for control in held])), 4),
            "jerk_m_s3": round(float(np.mean([control.jerk for control in held])), 2),
            "late_p95_ms": round(max(control.late_p95_ms for control in held), 3),
            "slipped_ms": round(sum(control.slipped_ms for control in held), 1),
        }


def cells_of(records: Iterable[EpisodeRecord]) -> list[Cell]:
    """The newest record of every episode, by condition: world by world, decoder by decoder, from fast to slow."""
    found: dict[tuple[str, str, str, str, str, str], list[EpisodeRecord]] = {}
    for record in newest_by_key(records).values():
        time = ", ".join((record.clock, *record.timing))
        weights = (record.policy_id, record.checkpoint_hash, record.unnorm_key)
        found.setdefault((world_of(record), *weights, record.decoder, time), []).append(record)
    cells = [
        Cell(world, policy, decoder, time, tuple(group))
        for (world, policy, _, _, decoder, time), own in found.items()
        for group in by_settings(own)
    ]
    return sorted(_told_apart(cells), key=lambda cell: (cell.world, cell.policy, cell.decoder, cell.wait_ms))


def _told_apart(cells: Sequence[Cell]) -> list[Cell]:
    """The same cells; a decoder's name tells what sets it apart from the same policy's decoder of the same name."""
    named: dict[tuple[str, str], list[EpisodeRecord]] = {}
    for cell in cells:
        named.setdefault((cell.policy, cell.decoder), []).extend(cell.records)
    return [
        replace(cell, decoder=", ".join((cell.decoder, *_differing(cell, named[cell.policy, cell.decoder]))))
        for cell in cells
    ]


def _differing(cell: Cell, records: Sequence[EpisodeRecord]) -> list[str]:
    """What a cell tells of its statistics and settings that is not the same for all of these records."""

    def told(part: Sequence[EpisodeRecord]) -> list[list[str]]:
        settings = [Settings.of(record) for record in part]
        columns = ([record.unnorm_key for record in part], *zip(*settings, strict=True))
        return [sorted({value for value in column if value is not None}) for column in columns]

    pairs = zip(told(cell.records), told(records), strict=True)
    return [" + ".join(own) for own, everything in pairs if len(everything) > 1 and any(own)]


def world_of(record: EpisodeRecord) -> str:
    """The suite and, in words of the protocol, what differs from the official evaluation."""
    changed = [part.split(" (official")[0] for part in record.protocol_deviations if part != SEEDED_EVERY_EPISODE]
    return ", ".join((record.suite, *changed))


def baseline_of(cell: Cell, cells: Sequence[Cell]) -> Cell:
    """What a cell is compared with: in the same world, the lock-step clock if it was run, else the least latency; where
    no latency is known, itself.
    """
    rivals = [other for other in cells if other.world == cell.world and other.control_latency]
    return min(rivals, key=lambda other: (other.clock != LOCK_STEP, other.wait_ms), default=cell)


def rows_of(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row for every cell, each paired with its baseline."""
    return [cell.row(baseline_of(cell, cells)) for cell in cells]
