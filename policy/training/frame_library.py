"""Frames and instructions to train a drafter on, in host memory, and which of them are for validation.

Knows nothing of where they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from policy.training.episode_choice import held_out_names
from policy.training.episode_reader import EpisodeReader, SizedEpisode


class FrameLibrary:
    """Frames in host memory, 150,528 bytes each, where reading has put them: they are not copied together.

    instructions: the different texts. rows_by_digest: which rows are an episode's, by its digest.
    """

    def __init__(self, episodes: Sequence[SizedEpisode]) -> None:
        self.instructions = tuple(dict.fromkeys(episode.instruction for episode in episodes))
        self._places = [(episode, step) for episode in episodes for step in range(len(episode.frames))]
        ends = list(accumulate(len(episode.frames) for episode in episodes))
        self.rows_by_digest = {
            episode.digest(): slice(end - len(episode.frames), end) for episode, end in zip(episodes, ends, strict=True)
        }

    def __len__(self) -> int:
        return len(self._places)

    def frames(self, rows: Tensor) -> Tensor:
        """Uint8 `[B, 224, 224, 3]` of rows int64 `[B]`."""
        return torch.from_numpy(np.stack([episode.frames[step] for episode, step in self._at(rows)]))

    def texts(self, rows: Tensor) -> tuple[str, ...]:
        return tuple(episode.instruction for episode, _ in self._at(rows))

    def _at(self, rows: Tensor) -> list[tuple[SizedEpisode, int]]:
        return [self._places[row] for row in rows.tolist()]


def load_libraries(
    reader: EpisodeReader, capacity: int, held_out_every: int, report: Callable[[str], None]
) -> tuple[FrameLibrary, FrameLibrary]:
    """Training and validation frames; `held_out_names` are for validation.

    Reads until `capacity` frames are there, and reports what was left out. Raises ValueError where either part stays
    empty.
    """
    taken: list[SizedEpisode] = []
    count, full = 0, False
    with closing(iter(reader)) as episodes:
        for episode in episodes:
            if full := count + len(episode.frames) > capacity:
                break
            taken.append(episode)
            count += len(episode.frames)
    names = {episode.name for episode in taken}
    if full:
        left = "all others were" if reader.total is None else f"{reader.total - len(names)} of {reader.total} were"
        report(f"{len(names)} episodes fill the capacity of {capacity} frames; {left} left out")
    if reader.unlabelled:
        report(f"{reader.unlabelled} episodes, or parts of one, have no instruction and were left out")
    held_out = held_out_names(names, held_out_every)
    parts = [[episode for episode in taken if (episode.name in held_out) == wanted] for wanted in (False, True)]
    if not all(parts):
        raise ValueError(
            f"{len(parts[0])} episodes to train on and {len(parts[1])} to validate with, {count} frames in all; both "
            f"are needed: give more episodes, or another capacity ({capacity})"
        )
    training, validation = (FrameLibrary(part) for part in parts)
    return training, validation
