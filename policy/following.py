"""A policy that takes over the newest weights of a training run between two actions, for dataset aggregation.

Knows when to look and how to tell that there is something new. Replacing weights in place is the policy's part.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from policy.openvla.checkpoint import CheckpointError
from policy.runtime import Policy
from policy.types import Action, Observation, PolicySpec

_log = logging.getLogger(__name__)
_LONGEST_WAIT = 0.2  # seconds: a first batch, which takes seconds, must not keep its clients waiting for seconds more


class FollowingPolicy:
    """Satisfies `policy.types.ActionPolicy`; not for robots, whose policy should stay what was tested.

    checkpoint: the folder that training replaces as a whole with each save. seconds: how often to look there.
    share: of the time, in which it may decide. It waits for the rest, so that training has the GPU to itself meanwhile
    and more clients are answered at once afterwards.
    """

    def __init__(self, policy: Policy, checkpoint: Path, seconds: float, share: float = 1.0) -> None:
        if seconds <= 0:
            raise ValueError(f"a checkpoint is looked at every so many seconds, got {seconds}; give a positive number")
        if not 0 < share <= 1:
            raise ValueError(f"a policy may use a share of the time above 0 and up to 1, got {share}")
        if not checkpoint.is_dir():
            raise ValueError(f"only a directory can be followed, which {checkpoint} is not; a hub id's weights stay")
        self._policy, self._checkpoint, self._seconds, self._share = policy, checkpoint, seconds, share
        self._free_at = 0.0
        self._held = self._saved()
        self._looked_at = time.monotonic()

    @property
    def spec(self) -> PolicySpec:
        """The policy's, with the hash of the weights that it holds now."""
        return self._policy.spec

    def reset(self, session: str = "") -> None:
        self._policy.reset(session)

    def act(self, observation: Observation, session: str = "") -> Action:
        return self.act_batch([observation], [session])[0]

    def act_batch(self, observations: Sequence[Observation], sessions: Sequence[str]) -> list[Action]:
        """As the policy does, with the newest weights."""
        if time.monotonic() - self._looked_at >= self._seconds:
            self._renew()
        time.sleep(max(0.0, self._free_at - time.monotonic()))
        begun = time.monotonic()
        try:
            return self._policy.act_batch(observations, sessions)
        finally:
            ended = time.monotonic()
            self._free_at = ended + min((ended - begun) * (1 / self._share - 1), _LONGEST_WAIT)

    def rest(self) -> None:
        self._policy.rest()

    def close(self) -> None:
        self._policy.close()

    def _renew(self) -> None:
        self._looked_at = time.monotonic()
        saved = self._saved()
        if saved in (self._held, None):
            return
        try:
            self._policy.renew(self._checkpoint)
        except (CheckpointError, OSError) as error:  # replaced while it was read: the next look finds it whole
            _log.warning("the old weights stay: %s", error)
            return
        except ValueError as error:  # another network was put there, which no client can help
            _log.error("the old weights stay: %s", error)
            self._held = saved
            return
        self._held = saved
        _log.info("took over weights sha256 %s", self._policy.spec.checkpoint_hash[:12])

    def _saved(self) -> tuple[int, int] | None:
        """Changes with every save; None while there is none."""
        try:
            found = self._checkpoint.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns
