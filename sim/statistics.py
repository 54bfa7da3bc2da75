"""Success counts with their intervals, and the comparison of two policies on the same episodes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True, slots=True)
class SuccessRate:
    """Successes among valid episodes (errors left out)."""

    successes: int
    episodes: int

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.episodes:
            raise ValueError(f"successes must be 0..{self.episodes}, got {self.successes}")

    @property
    def rate(self) -> float:
        """Successes per episode; NaN without episodes."""
        return self.successes / self.episodes if self.episodes else float("nan")

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's score interval, without continuity correction (Wilson 1927, JASA 22); (0, 1) without episodes."""
        from scipy.stats import binomtest

        if not self.episodes:
            return 0.0, 1.0
        low, high = binomtest(self.successes, self.episodes).proportion_ci(confidence, method="wilson")
        return float(low), float(high)


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two policies on the same episodes.

    only_first, only_second: episodes that just one of them solved. p_value: McNemar's exact two-sided test (McNemar
    1947, Psychometrika 12): the chance of a split at least this uneven if both were equally good.
    """

    episodes: int
    only_first: int
    only_second: int
    p_value: float

    @property
    def points(self) -> float:
        """The first's success rate less the second's, in percentage points."""
        return 100 * (self.only_first - self.only_second) / self.episodes

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Bounds of `points`: Wald's for paired rates with half an episode added to each of the four outcomes (Agresti
        and Min 2005, Statistics in Medicine 24), so that no disagreement at all does not pass for certainty.
        """
        episodes, first, second = self.episodes + 2, self.only_first + 0.5, self.only_second + 0.5
        difference = (first - second) / episodes
        error = math.sqrt((first + second) / episodes - difference**2) / math.sqrt(episodes)
        reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
        return 100 * (difference - reach), 100 * (difference + reach)


def compare_paired(first: Mapping[Hashable, bool], second: Mapping[Hashable, bool]) -> PairedComparison:
    """Compares success by episode, on the episodes that both have. Raises ValueError if there are none."""
    from scipy.stats import binomtest

    shared = first.keys() & second.keys()
    if not shared:
        raise ValueError(f"the two sets of {len(first)} and {len(second)} episodes have none in common")
    only_first = sum(first[key] and not second[key] for key in shared)
    only_second = sum(second[key] and not first[key] for key in shared)
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0
    return PairedComparison(len(shared), only_first, only_second, p_value)
