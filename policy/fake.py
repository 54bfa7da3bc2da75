"""A policy without a model, for tests of everything around it. Imports no torch."""

from __future__ import annotations

import time

import numpy as np

from policy.types import Action, DecodeTrace, Observation, PolicySpec


class FakePolicy:
    """Deterministic actions from the mean colour of the frame and the number of steps since reset.

    delay_s: seconds each decision takes (sleeps), to stand in for a slow model.
    """

    def __init__(self, delay_s: float = 0.0, policy_id: str = "fake") -> None:
        self.spec = PolicySpec(policy_id=policy_id, prompt_template="{instruction}", image_path="processor")
        self.delay_s = delay_s
        self._steps: dict[str, int] = {}

    def reset(self, session: str = "") -> None:
        self._steps.pop(session, None)

    def act(self, observation: Observation, session: str = "") -> Action:
        if self.delay_s:
            time.sleep(self.delay_s)
        step = self._steps.get(session, 0)
        self._steps[session] = step + 1
        values = np.zeros(7, np.float32)
        values[:3] = observation.image.reshape(-1, 3).mean(0) / 127.5 - 1
        values[3] = step
        return Action(values, np.zeros(0, np.int64), DecodeTrace(target_passes=0))

    def act_batch(self, observations: list[Observation], sessions: list[str]) -> list[Action]:
        return [self.act(o, s) for o, s in zip(observations, sessions, strict=True)]

    def close(self) -> None:
        self._steps.clear()
