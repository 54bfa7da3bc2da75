"""Drafters by name. Adding one is a file beside this one and a line in `DRAFTERS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from policy.drafting.base import Drafter
from policy.drafting.dataset import DatasetMean
from policy.drafting.motion import MotionCoefficients, MotionDrafter
from policy.drafting.previous import PreviousAction
from policy.drafting.retrieval import Retrieval
from policy.openvla.action_tokens import ActionStatistics
from policy.openvla.model import OpenVLA


@dataclass(frozen=True, slots=True)
class DrafterMaterial:
    """What a drafter may be built from.

    directory: the checkpoint's, where fitted drafters keep their files. statistics: of the actions it was trained on.
    """

    model: OpenVLA
    statistics: ActionStatistics
    directory: Path


DRAFTERS: dict[str, Callable[[DrafterMaterial], Drafter]] = {
    "previous": lambda material: PreviousAction(),
    "motion": lambda material: MotionDrafter(MotionCoefficients.load(material.directory)),
    "retrieval": lambda material: Retrieval(),
    "dataset": lambda material: DatasetMean(material.statistics),
}


def check_drafters(names: tuple[str, ...]) -> None:
    """Raise ValueError for a name that is not a drafter's or is given twice."""
    if unknown := [name for name in names if name not in DRAFTERS]:
        raise ValueError(f"there is no drafter {', '.join(unknown)}; choose some of {', '.join(DRAFTERS)}")
    if len(set(names)) < len(names):
        raise ValueError(f"each drafter can be named once, got {', '.join(names)}")
