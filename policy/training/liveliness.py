"""How lively actions are: how often consecutive ones repeat, and how far they move, in action bins.

Drafters guess the next action from the past, so actions that repeat more than a human's do flatter every measured
acceptance. Knows sequences of actions and bins; knows nothing of files, simulators or networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policy.openvla.action_tokens import ActionStatistics, ActionTokenizer

DIMENSIONS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
RADII = (1, 3, 9)  # bins; 9 is the largest relaxation that Spec-VLA (arXiv 2507.22424) uses on LIBERO
# Share of whole actions that repeat exactly at lag 1, from lowest to highest run, as the README of
# guanghaichen/SpecVLA-DFLASH reports it for OpenVLA fine-tuned on LIBERO's human demonstrations.
PUBLISHED_REPETITION = (0.127, 0.141)


@dataclass(frozen=True, slots=True)
class Movement:
    """How far one dimension, or the most moving of several, is from one action to the next.

    transitions: number of pairs of consecutive actions. repeats: share that stay in their bin.
    within: share that move at most RADII bins. median, p90: of the distance in bins.
    """

    transitions: int
    repeats: float
    within: tuple[float, ...]
    median: float
    p90: float

    def row(self) -> dict[str, float | int]:
        """One flat mapping for a table."""
        shares = {f"within_{radius}": share for radius, share in zip(RADII, self.within, strict=True)}
        return {"transitions": self.transitions, "repeats": self.repeats, **shares} | {
            "median_bins": self.median,
            "p90_bins": self.p90,
        }


@dataclass(frozen=True, slots=True)
class Liveliness:
    """Of a set of episodes: by dimension, in the order of DIMENSIONS, and of the whole action.

    whole: the distance of a pair is that of its most moving dimension, so `repeats` is exact repetition of all seven.
    """

    dimensions: tuple[Movement, ...]
    whole: Movement


def bin_range(episodes: Sequence[np.ndarray]) -> ActionStatistics:
    """The range that OpenVLA's bins would span for these episodes of `[T, 7]`: 1st to 99th percentile."""
    values = np.concatenate([np.asarray(episode, np.float64) for episode in episodes])
    low, high = np.quantile(values, (0.01, 0.99), axis=0)
    mask = np.array([True] * 6 + [False])
    return ActionStatistics(q01=low, q99=high, mask=mask, min=values.min(0), max=values.max(0))


def liveliness(episodes: Sequence[np.ndarray], statistics: ActionStatistics) -> Liveliness:
    """Of episodes of actions, `[T, 7]` each (gripper 0 or 1, as OpenVLA's data store it), in the bins of `statistics`.

    Raises ValueError where no episode has two actions.
    """
    tokenizer = ActionTokenizer()
    steps = [np.abs(np.diff(tokenizer.encode(statistics.normalize(episode)), axis=0)) for episode in episodes]
    distances = np.concatenate(steps) if steps else np.zeros((0, len(DIMENSIONS)))
    if not len(distances):
        raise ValueError(f"none of the {len(episodes)} episodes has two actions; nothing moves from one to the next")
    by_dimension = tuple(_movement(column) for column in distances.T)
    return Liveliness(by_dimension, _movement(distances.max(1)))


def _movement(distances: np.ndarray) -> Movement:
    return Movement(
        transitions=len(distances),
        repeats=float((distances == 0).mean()),
        within=tuple(float((distances <= radius).mean()) for radius in RADII),
        median=float(np.median(distances)),
        p90=float(np.quantile(distances, 0.9)),
    )
