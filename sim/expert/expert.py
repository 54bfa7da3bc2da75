"""The scripted expert as one object per episode, and as a policy the evaluation harness can run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from policy.types import Action, DecodeTrace, Observation, PolicySpec
from sim.expert.posture import bent
from sim.expert.recipes import Skill, skill_for
from sim.expert.state import SimulatorState
from sim.expert.variation import Variation


def _source_digest() -> str:
    """Tells experts of other code apart: 12 hex digits over the Python files of this folder."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


# Its code is what settings are to a decoder, and weights to a network.
EXPERT_SPEC = PolicySpec(
    policy_id="scripted-expert",
    decoder="none",
    image_path="none",
    privileged=True,
    decoding_digest=_source_digest(),
)


class SimulatedWorld(Protocol):
    """What the expert needs of an environment: LIBERO's `ControlEnv`, reset and settled."""

    @property
    def simulator(self) -> Any: ...


class Expert:
    """The expert for one episode. Make it after the reset and the settling steps: a reset builds a new simulator model.

    phase: name of the part of the task the last decision belonged to, "" before the first.
    focus: names of the thing that the last decision was about and of where it belongs; before the first decision, and
    in tasks of one goal, the first and the last thing that the task's definition names.
    """

    def __init__(self, state: SimulatorState, skill: Skill) -> None:
        self.state, self._skill = state, skill
        self._variation = Variation(state.instruction)
        self.phase = ""
        self.focus = state.objects_of_interest[0], state.objects_of_interest[-1]

    def act(self) -> np.ndarray:
        """The action for the simulator's present state: float64 `[7]`, raw LIBERO (gripper -1 open, +1 close)."""
        decision = self._skill(self.state)
        self.phase = decision.phase
        self.focus = decision.focus or self.focus
        return bent(self._variation(decision, self.state.hand_position), self.state)


def make_expert(env: SimulatedWorld) -> Expert:
    """The expert for the episode `env` has just begun; ValueError for a task that no recipe covers."""
    state = SimulatorState(env.simulator)
    return Expert(state, skill_for(state))


def to_openvla(action: np.ndarray) -> np.ndarray:
    """A raw LIBERO action as OpenVLA's datasets store it: float32, gripper 1 = open, 0 = closed instead of -1, +1."""
    converted = np.array(action, np.float32)
    converted[..., 6] = (1.0 - converted[..., 6]) / 2.0
    return converted


class ExpertPolicy:
    """The expert behind the interface of a policy; it reads the simulator and never looks at the picture."""

    def __init__(self, env: SimulatedWorld) -> None:
        self._env = env
        self._expert: Expert | None = None
        self.spec = EXPERT_SPEC

    def reset(self) -> None:
        """A new episode starts; the environment has to be reset before the next `act`."""
        self._expert = None

    def act(self, observation: Observation) -> Action:
        """The expert's action for the simulator's present state, in OpenVLA's gripper convention and without tokens."""
        if self._expert is None:
            self._expert = make_expert(self._env)
        values = to_openvla(self._expert.act())
        return Action(values, np.zeros(0, np.int64), DecodeTrace(target_passes=0))

    def close(self) -> None:
        self._expert = None
