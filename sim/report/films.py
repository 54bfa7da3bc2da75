"""Which films to show side by side: the same initial state under different latencies.

Knows where a sweep keeps its films: in a folder named like the file of records. Does not know HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sim.cells import cells_of, world_of
from sim.records import EpisodeRecord, Outcome


@dataclass(frozen=True, slots=True)
class Film:
    """label: the condition in words. latency_ms: infinite where it is not known. solved: the episode's outcome."""

    path: Path
    label: str
    latency_ms: float
    solved: bool


@dataclass(frozen=True, slots=True)
class FilmRow:
    """The same initial state, fastest first."""

    title: str
    films: tuple[Film, ...]

    @property
    def telling(self) -> tuple[bool, int]:
        """Orders rows by what there is to see: different outcomes first, then many conditions."""
        return len({film.solved for film in self.films}) > 1, len(self.films)


def film_rows(runs: Mapping[Path, list[EpisodeRecord]], rows_per_world: int = 1) -> list[FilmRow]:
    """The most telling initial states of each world that were filmed under at least two conditions.

    runs: the newest records, by the file they come from.
    """
    found: dict[tuple[str, str, int, int], list[Film]] = {}
    for file, records in runs.items():
        for record in records:
            path = file.with_suffix("") / f"{record.suite}-{record.task:02d}-{record.init_state:02d}.mp4"
            if path.is_file() and record.outcome is not Outcome.ERROR:
                latency = cells_of([record])[0].wait_ms
                label = ", ".join((record.decoder, record.clock, *record.timing))
                film = Film(path, label, latency, record.outcome is Outcome.SUCCESS)
                place = (world_of(record), record.instruction, record.task, record.init_state)
                found.setdefault(place, []).append(film)
    by_world: dict[str, list[FilmRow]] = {}
    for (world, instruction, _, state), films in found.items():
        if len(films) > 1:
            ordered = tuple(sorted(films, key=lambda film: film.latency_ms))
            by_world.setdefault(world, []).append(FilmRow(f"{world}: {instruction}, initial state {state}", ordered))
    best = (sorted(rows, key=lambda row: row.telling, reverse=True)[:rows_per_world] for rows in by_world.values())
    return [row for rows in best for row in rows]
