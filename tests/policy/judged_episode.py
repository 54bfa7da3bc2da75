"""One session as a rule meets it, action after action."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from policy.decoding.acceptance.base import AcceptanceRule, AcceptanceState
from policy.decoding.physical import ActionUnits
from policy.decoding.tree import Draft, TokenTree
from policy.openvla.action_tokens import ActionStatistics

STATISTICS = ActionStatistics(-np.ones(7), np.ones(7), np.array([True] * 6 + [False]))
UNITS = ActionUnits.from_statistics(STATISTICS)  # 0.392 mm and 3.92 mrad per bin
POSE = 6


@dataclass
class Episode:
    """One session whose six pose components are drafted in one chain; what is refused, the target decides.

    Every position has its own logits here, whatever came before it, so a chain that is refused at one node is judged
    on: dimensions are tested independently.
    """

    rule: AcceptanceRule
    state: AcceptanceState = field(default_factory=lambda: AcceptanceState.fresh(1))
    deviations: list[np.ndarray] = field(default_factory=list)

    def step(self, choice: np.ndarray, drafted: np.ndarray, still: bool = False) -> np.ndarray:
        """One action; which of the six drafted components were accepted."""
        logits = torch.zeros(1, POSE, 256)
        logits[0, torch.arange(POSE), torch.from_numpy(choice[:POSE])] = 1.0
        tree = TokenTree.of([Draft.chain(0, drafted[:POSE].tolist(), "test")], POSE)
        verdict = self.rule.accept(tree, logits, tree.depths, self.state)
        target = torch.from_numpy(choice)[None]
        emitted = target.clone()
        emitted[:, :POSE] = torch.where(verdict.accepted, verdict.emitted, target[:, :POSE])
        self.deviations.append((emitted - target)[0].numpy())
        self.state = self.rule.update(self.state, emitted, emitted - target, torch.tensor([still]))
        return verdict.accepted[0].numpy()

    def drift(self) -> np.ndarray:
        """Commanded deviation `[ticks, 6]` in mm and mrad."""
        return np.array(self.deviations)[:, :POSE] * UNITS.bin_sizes[:POSE]
