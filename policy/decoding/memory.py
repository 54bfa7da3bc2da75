"""What speculation remembers of one session between two actions of an episode.

Knows nothing of other sessions; forgetting an episode is dropping this object.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from policy.decoding.acceptance.base import AcceptanceState
from policy.openvla.config import ACTION_DIMENSIONS

# As far back as drafters look; older actions are dropped.
REMEMBERED_ACTIONS = 16


@dataclass(slots=True)
class EpisodeMemory:
    """One episode of one session so far.

    state: what rules remember, with B = 1, on the host.
    choices: bins that the target itself chose, int64 `[7]` each. Drafts start from them and not from what was executed:
        a tolerant rule would else accept its own last action again and again while the target drifts away.
    picture: float32 `[features]`, the last frame's features on the model's device; None before the first action.
    """

    state: AcceptanceState = field(default_factory=lambda: AcceptanceState.fresh(1))
    choices: deque[np.ndarray] = field(default_factory=lambda: deque(maxlen=REMEMBERED_ACTIONS))
    picture: Tensor | None = None

    @property
    def history(self) -> np.ndarray:
        """int64 `[T, 7]`, oldest first."""
        return np.stack(self.choices) if self.choices else np.zeros((0, ACTION_DIMENSIONS), np.int64)
