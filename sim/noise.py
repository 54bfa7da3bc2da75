"""Noise on executed actions, so that demonstrations show how to recover and not only how to go right.

Disturbances come in bursts with a common offset, because independent noise per step averages out and leaves no
visible error to recover from. The idea is DART's (Laskey et al., 2017): noise on the supervisor's actions, clean ones
as labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class BurstNoise:
    """Bursts of noise on the six pose components of an action, in action units.

    sigma: standard deviation of a burst's constant offset.
    start_probability: of a burst to start at a step that has none.
    mean_length: of a burst in steps, exponentially distributed and at least 2.
    white_share: standard deviation of the part that changes every step, as a share of sigma.
    """

    sigma: float
    start_probability: float = 0.06
    mean_length: float = 8.0
    white_share: float = 0.7

    def __post_init__(self) -> None:
        if not 0.0 <= self.sigma <= 1.0:
            raise ValueError(f"sigma must be 0..1 action units, got {self.sigma}")
        if not 0.0 <= self.start_probability <= 1.0:
            raise ValueError(f"start_probability must be 0..1, got {self.start_probability}")
        if self.mean_length < 1.0 or self.white_share < 0.0:
            found = f"{self.mean_length} and {self.white_share}"
            raise ValueError(f"mean_length must be at least 1 and white_share at least 0, got {found}")

    def stream(self, random: np.random.Generator) -> Iterator[np.ndarray]:
        """Endless disturbances float64 `[6]`, one per step, reproducible from the generator's seed."""
        while True:
            if random.random() >= self.start_probability:
                yield np.zeros(6)
                continue
            offset = random.normal(0.0, self.sigma, 6)
            for _ in range(max(2, int(random.exponential(self.mean_length)))):
                yield offset + random.normal(0.0, self.sigma * self.white_share, 6)
