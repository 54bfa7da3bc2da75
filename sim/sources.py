"""Where an evaluation's workers get their policy from. A source travels to the worker processes, a policy does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from policy.types import ActionPolicy, PolicySpec
from sim.environments import World


class PolicySource(Protocol):
    """Opens the policy inside a worker process; must be picklable."""

    def spec(self) -> PolicySpec:
        """What the policy is, before any world is built."""

    def open(self, env: World) -> ActionPolicy:
        """The policy for one world; called again when the worker moves to another task."""


@dataclass(frozen=True, slots=True)
class RemotePolicy:
    """A policy server; each worker is a client of its own.

    timeout_s: seconds one decision may take, queueing behind the other workers included.
    """

    endpoint: str
    timeout_s: float = 60.0

    def spec(self) -> PolicySpec:
        """The spec from the server's handshake."""
        client = self._connect()
        try:
            return client.spec
        finally:
            client.close()

    def open(self, env: World) -> ActionPolicy:
        """A client that has shaken hands."""
        return self._connect()

    def _connect(self) -> ActionPolicy:
        from bridge.client import PolicyClient

        return PolicyClient(self.endpoint, timeout_s=self.timeout_s)


@dataclass(frozen=True, slots=True)
class ScriptedExpert:
    """The scripted expert, which reads the simulator's state; never to be reported as a camera policy."""

    def spec(self) -> PolicySpec:
        """The expert's spec, the same for every task."""
        from sim.expert.expert import EXPERT_SPEC

        return EXPERT_SPEC

    def open(self, env: World) -> ActionPolicy:
        """The expert for this world's task. Raises TypeError for a world that has no simulator to read."""
        from sim.expert import ExpertPolicy
        from sim.libero import LiberoEnv

        if not isinstance(env, LiberoEnv):
            raise TypeError(f"the scripted expert reads LIBERO's simulator; {type(env).__name__} has none")
        return ExpertPolicy(env)
