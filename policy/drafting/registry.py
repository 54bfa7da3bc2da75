"""Drafters by name. Adding one is a file beside this one and a line in one of the tables.

Knows where trained drafters are kept: each in a folder of its own, beside the target's weights unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from policy.decoding.capture import Record
from policy.decoding.physical import LIBERO_CONTROLLER, ControllerScale
from policy.drafting.action_rows import ActionRows
from policy.drafting.base import Drafter, Head, SeeingDrafter
from policy.drafting.dataset import DatasetMean
from policy.drafting.draft_vla import DraftVLA
from policy.drafting.eagle import EagleHead
from policy.drafting.head_checkpoint import load_head
from policy.drafting.motion import MotionCoefficients, MotionDrafter
from policy.drafting.parallel import ParallelHead
from policy.drafting.previous import PreviousAction
from policy.drafting.reading_head import ReadingHead
from policy.drafting.retrieval import Retrieval
from policy.openvla.action_tokens import ActionStatistics
from policy.openvla.model import OpenVLA

FOLDER = "drafters"


@dataclass(frozen=True, slots=True)
class DrafterMaterial:
    """What a drafter may be built from.

    directory: the checkpoint's, where fitted and trained drafters keep their files. statistics: of the actions it was
    trained on. weights: folders of trained drafters that are elsewhere, by name. recorder: makes what replays a
    drafter's passes; None where nothing is replayed. controller: what the robot makes of an action, None where that is
    not known; drafters do not ask, but an acceptance rule does.
    """

    model: OpenVLA
    statistics: ActionStatistics
    directory: Path
    weights: Mapping[str, Path] = field(default_factory=dict)
    recorder: Callable[[], Record] | None = None
    controller: ControllerScale | None = LIBERO_CONTROLLER

    def trained(self, name: str) -> Path:
        """The folder of a trained drafter. Raises ValueError where there is none."""
        folder = Path(self.weights.get(name, trained_folder(self.directory, name)))
        if not folder.is_dir():
            raise ValueError(
                f"there is no trained drafter {name!r} in {folder}; train one with scripts/train_drafter.py "
                f"--kind {name}, or name its folder under `weights` in the decoding configuration"
            )
        return folder

    def record(self) -> Record | None:
        """One for each drafter: replays of one recorder must not overlap, and drafters run beside the target."""
        return None if self.recorder is None else self.recorder()


def trained_folder(checkpoint: Path, name: str) -> Path:
    """Where a drafter trained for a checkpoint is looked for."""
    return checkpoint / FOLDER / name


DRAFTERS: dict[str, Callable[[DrafterMaterial], Drafter]] = {
    "previous": lambda material: PreviousAction(),
    "motion": lambda material: MotionDrafter(MotionCoefficients.load(material.directory)),
    "retrieval": lambda material: Retrieval(),
    "dataset": lambda material: DatasetMean(material.statistics),
}


def _load_draft_vla(material: DrafterMaterial) -> DraftVLA:
    model, folder = material.model, material.trained(DraftVLA.name)
    return DraftVLA.load(folder, material.statistics, model.device, model.dtype, material.record())


def _head(kind: type[ReadingHead]) -> Callable[[DrafterMaterial], Head]:
    def load(material: DrafterMaterial) -> Head:
        network = load_head(material.trained(kind.name), material.model, kind.name)
        return kind(network, ActionRows.of(material.model), material.record())

    return load


# Named among `drafters`, too, but asked as networks are.
SEEING_DRAFTERS: dict[str, Callable[[DrafterMaterial], SeeingDrafter]] = {DraftVLA.name: _load_draft_vla}
HEADS: dict[str, Callable[[DrafterMaterial], Head]] = {kind.name: _head(kind) for kind in (EagleHead, ParallelHead)}


def trained_drafters(checkpoint: Path, weights: Mapping[str, Path]) -> list[str]:
    """Networks that there are weights for: beside a checkpoint's own, or where `weights` says."""
    return [name for name in (*SEEING_DRAFTERS, *HEADS) if name in weights or trained_folder(checkpoint, name).is_dir()]


def check_drafters(names: Sequence[str]) -> None:
    """Raise ValueError for a name that is not a drafter's or is given twice."""
    known = (*DRAFTERS, *SEEING_DRAFTERS)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no drafter {', '.join(unknown)}; choose some of {', '.join(known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"each drafter can be named once, got {', '.join(names)}")


def check_head(name: str) -> None:
    """Raise ValueError for a name that is not a head's."""
    if name not in HEADS:
        raise ValueError(f"there is no head {name!r}; choose one of {', '.join(HEADS)}")
