"""Which logged episodes drafters are judged on: those that their training did not learn from.

Knows how training splits episodes and where it notes its settings. Knows nothing of networks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from policy.training.drafter_config import DrafterTrainingConfig
from policy.training.episode_choice import held_out_names, is_held_out
from policy.training.episode_reader import EpisodeReader, SizedEpisode

WAY_OUT = "give more of them, another --held-out-every, or --all true, which also takes what drafters learned from"


@dataclass(frozen=True, slots=True)
class JudgedEpisodes:
    """warming: played first and not counted. measured: played and counted.
    held_out: of each measured one, whether training holds it out.

    Each is a demonstration's path, or an episode that was read already.
    """

    warming: Sequence[Path | SizedEpisode]
    measured: Sequence[Path | SizedEpisode]
    held_out: Sequence[bool]


def choose_demonstrations(
    paths: Sequence[Path], held_out_every: int, count: int, warming: int, take_all: bool = False
) -> JudgedEpisodes:
    """At most `count` of those held out, or of all, evenly taken. Others warm where too few are held out.

    Raises ValueError where there are none.
    """
    names = held_out_names((path.name for path in paths), held_out_every)
    pool = [path for path in paths if take_all or path.name in names]
    if len(pool) > warming:
        taken = pool[:: max(1, len(pool) // (count + warming))]
        first, measured = taken[:warming], taken[warming : warming + count]
    else:
        first = [*(path for path in paths if path not in pool), *pool][:warming]
        measured = [path for path in pool if path not in first][:count]
    if not measured:
        raise ValueError(f"{len(paths)} demonstrations leave none to measure with after {warming} to warm; {WAY_OUT}")
    return JudgedEpisodes(first, measured, [path.name in names for path in measured])


def choose_of_data_set(reader: EpisodeReader, held_out_every: int, count: int, warming: int) -> JudgedEpisodes:
    """The first that the reader gives, which decides whether they are held out. Raises ValueError for too few."""
    taken = list(islice(reader, warming + count))
    if len(taken) <= warming:
        raise ValueError(f"there are {len(taken)} episodes held out, at least {warming + 1} are needed; {WAY_OUT}")
    measured = taken[warming:]
    held_out = [is_held_out(episode.name, held_out_every) for episode in measured]
    return JudgedEpisodes(taken[:warming], measured, held_out)


def split_of(drafters: Iterable[Path]) -> int:
    """One episode in how many the training of these drafters, by their folders, held out; its default if none says.

    Raises ValueError where they differ.
    """
    notes = [folder.with_name(f"{folder.name}-training") / "config.json" for folder in drafters]
    settings = {note: json.loads(note.read_text(encoding="utf-8")) for note in notes if note.is_file()}
    told = {note: setting["held_out_every"] for note, setting in settings.items() if "held_out_every" in setting}
    if len(set(told.values())) > 1:
        listed = ", ".join(f"1 in {every} ({note.parent})" for note, every in told.items())
        raise ValueError(f"the drafters' trainings held out different episodes: {listed}; give --held-out-every")
    return next(iter(told.values()), DrafterTrainingConfig.held_out_every)
