"""Who moves the arm while a demonstration is recorded, beside the expert: a policy that visits its own mistakes.

Knows the policy interface and nothing of networks, sockets or the demonstration format.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policy.types import ActionPolicy, Observation


@dataclass(frozen=True, slots=True)
class Stretches:
    """Mean lengths, in control steps, of the stretches in which policy and expert drive in turn (exponential).

    spread: the policy's mean is drawn anew for each episode, from policy / spread to policy * spread (log-uniform): in
    some episodes the expert mends every slip at once, in others the policy gets as far from the way as it would alone.
    """

    policy: float = 30.0
    expert: float = 8.0
    spread: float = 3.0

    def __post_init__(self) -> None:
        if self.policy < 1 or self.expert < 1 or self.spread < 1:
            raise ValueError(
                f"stretches must be at least 1 step long on average and their spread at least 1, got {self.policy}, "
                f"{self.expert} and {self.spread}"
            )


class LoneDriver:
    """A policy that drives whole episodes, as it does when nobody helps. Call `reset` before every episode."""

    def __init__(self, policy: ActionPolicy) -> None:
        self._policy = policy

    @property
    def name(self) -> str:
        return self._policy.spec.policy_id

    def reset(self, seed: int) -> None:
        """A new episode."""
        self._policy.reset()

    def __call__(self, observation: Observation, label: np.ndarray) -> np.ndarray:
        """The policy's action for this observation; the label is not looked at."""
        return self._policy.act(observation).values


class AlternatingDriver:
    """Dataset aggregation (DAgger, Ross et al. 2011): states that the policy brings about, labelled by the expert.

    Policy and expert drive in stretches rather than step by step, so that the policy gets as far from the
    demonstrations as it would alone, and most episodes still end well. Call `reset` before every episode.
    """

    def __init__(self, policy: ActionPolicy, stretches: Stretches = Stretches()) -> None:
        self._policy = policy
        self._stretches = stretches
        self._random = np.random.default_rng()
        self._policy_drives = False
        self._policy_mean = stretches.policy
        self._left = 0

    @property
    def name(self) -> str:
        return f"{self._policy.spec.policy_id} and expert"

    def reset(self, seed: int) -> None:
        """A new episode; its stretches follow from the seed."""
        self._policy.reset()
        self._random = np.random.default_rng(seed)
        self._policy_mean = self._stretches.policy * self._stretches.spread ** self._random.uniform(-1.0, 1.0)
        self._policy_drives = bool(self._random.random() < 0.5)
        self._left = self._length()

    def __call__(self, observation: Observation, label: np.ndarray) -> np.ndarray:
        """The action to execute for this observation; label: the expert's, float32 `[7]`."""
        if self._left == 0:
            self._policy_drives = not self._policy_drives
            self._left = self._length()
        self._left -= 1
        return self._policy.act(observation).values if self._policy_drives else label

    def _length(self) -> int:
        mean = self._policy_mean if self._policy_drives else self._stretches.expert
        return max(1, round(self._random.exponential(mean)))
