"""Episodes as a robot's camera saw them: what every source of frames comes down to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np


@dataclass(frozen=True, slots=True)
class CameraEpisode:
    """What an adapter yields. name: tells episodes apart, and decides which are kept for validation.
    instruction: those that have none are passed over.
    images: uint8 `[H, W, 3]` RGB each, as the robot's camera gives them to a policy (unrotated, uncropped).
    """

    name: str
    instruction: str
    images: Iterable[np.ndarray]


CameraEpisodes = Callable[[], Iterable[CameraEpisode]]
"""An adapter: called without arguments, gives the episodes of a data set one by one."""


def split_by_instruction(
    name: str, instructions: Iterable[str], images: Iterable[np.ndarray]
) -> Iterator[CameraEpisode]:
    """An episode for each stretch of one instruction, in order. They share the name: validation gets all or none.

    instructions: one for each image, empty where there is none: whoever reads passes such stretches over.
    Raises ValueError where there are more or fewer images.
    """
    pictures = iter(images)
    for instruction, steps in groupby(instructions):
        count = sum(1 for _ in steps)
        stretch = [image for _, image in zip(range(count), pictures, strict=False)]
        if len(stretch) != count:
            raise ValueError(f"episode {name} has {len(stretch)} images for {count} steps of {instruction!r}")
        yield CameraEpisode(name, instruction, stretch)
    if next(pictures, None) is not None:
        raise ValueError(f"episode {name} has more images than steps")
