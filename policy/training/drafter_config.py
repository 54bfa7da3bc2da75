"""What the training of a drafter is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from policy.training.augmentation import AugmentationConfig
from policy.training.config import NetworkSize
from policy.training.widened_drafters import wide_folder_name

Kind = Literal["eagle", "parallel", "draft-vla"]
DRAFT_VLA: Final = "draft-vla"

# The draft model is small and starts from nothing; a head's step costs a pass of the target.
_BATCH_SIZES = {"eagle": 32, "parallel": 32, DRAFT_VLA: 256}
_LEARNING_RATES = {"eagle": 3e-4, "parallel": 3e-4, DRAFT_VLA: 1e-3}


@dataclass(frozen=True)  # no slots: jsonargparse reads a nested default's __dict__
class DrafterTrainingConfig:
    """target: the checkpoint to draft for, a directory or a hub id. frames: a folder of demonstrations, a
        LeRobot or RLDS data set, or "module:function" for any other, see docs/drafters.md.
    camera: which of a data set's cameras. turned: whether a data set stores pictures turned by 180 degrees against what
        the camera gives; left out, it does where the target is of LIBERO.
    shape: "7b" widens the target to the sizes of the published OpenVLA-7B first, without changing what it computes; for
        measurements where no such checkpoint is at hand.
    unnorm_key: which of the target's data sets it acts for; left out, the only one.
    image_path: how the target sees what a camera gives; "auto" goes by that data set's name.
    kind: "eagle" and "parallel" are heads, "draft-vla" a small model of its own.
    output: the drafter's folder; left out, it is where serving looks for it, `drafters/<kind>` beside the target's
        weights, or `drafters/<kind>-7b` where the target is widened. Progress is kept in `<output>-training`.
    minutes, max_steps: training ends with whichever comes first, reading frames and asking the target for its actions
        before the first step not counted.
    capacity: frames kept in memory, 150,528 bytes each. held_out_every: one episode in so many is for validation.
    validation_frames: so many of those held out are drafted whenever progress is told.
    batch_size, learning_rate: left out, the kind decides. final_rate: learning rate at the end, as a share of the
        peak's. warmup_steps: so many until the peak is reached.
    weight_decay: of AdamW. gradient_clip: longest gradient, by its norm.
    average_decay: what drafts is the mean of the weights over the last 1 / (1 - average_decay) steps, or over the last
        ninth of those made so far, whichever is shorter.
    feature_weight: heads only, weight of the smooth-L1 loss on hidden states beside the cross-entropy on bins.
    noise: heads only, uniform noise on the hidden states they read, as a share of their root mean square.
    smoothing_bins: draft-vla only, width of the Gaussian over bins it is taught with; 0 for the target's choice alone.
    network: draft-vla only, its sizes. augmentation: draft-vla only; colours vary, places do not.
    log_seconds: time from one validation to the next. decoders: processes that read demonstrations.
    seed: of weights, frames drawn and noise. device: auto, cpu, cuda or cuda:N. dtype: the target's, auto, float32 or
        bfloat16.
    save_seconds: time from one saving of progress to the next; for the head of a 7B target progress is 4 GB.
    resume: go on with a training cut short, which must have been of the same target, kind and network and have held out
        the same episodes.
    """

    target: str
    frames: str
    kind: Kind
    camera: str | None = None
    turned: bool | None = None
    output: Path | None = None
    shape: Literal["own", "7b"] = "own"
    unnorm_key: str | None = None
    image_path: Literal["auto", "libero", "processor"] = "auto"
    minutes: float = 20.0
    max_steps: int = 1_000_000
    capacity: int = 60_000
    held_out_every: int = 20
    validation_frames: int = 256
    batch_size: int | None = None
    learning_rate: float | None = None
    final_rate: float = 0.02
    warmup_steps: int = 100
    weight_decay: float = 0.01
    gradient_clip: float = 0.5
    average_decay: float = 0.99
    feature_weight: float = 1.0
    noise: float = 0.1
    smoothing_bins: float = 0.5
    log_seconds: float = 60.0
    save_seconds: float = 240.0
    decoders: int = 4
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    resume: bool = True
    network: NetworkSize = field(default_factory=lambda: NetworkSize(dinov2_blocks=4, siglip_blocks=4, text_layers=2))
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(get_args(Kind))}")
        positive = (
            "minutes",
            "max_steps",
            "capacity",
            "validation_frames",
            "warmup_steps",
            "gradient_clip",
            "decoders",
        )
        for name in (*positive, "resolved_batch_size", "resolved_learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name.removeprefix('resolved_')} must be positive, got {getattr(self, name)}")
        for name in ("feature_weight", "noise", "smoothing_bins", "weight_decay", "final_rate"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.average_decay < 1:
            raise ValueError(f"average_decay must lie between 0 and 1, got {self.average_decay}")
        if self.held_out_every < 2:
            raise ValueError(f"held_out_every must be at least 2, got {self.held_out_every}: validation needs episodes")

    @property
    def folder_name(self) -> str:
        """The drafter's folder beside others of the target, unless `output` names one."""
        return self.kind if self.shape == "own" else wide_folder_name(self.kind)

    @property
    def resolved_batch_size(self) -> int:
        return _BATCH_SIZES[self.kind] if self.batch_size is None else self.batch_size

    @property
    def resolved_learning_rate(self) -> float:
        return _LEARNING_RATES[self.kind] if self.learning_rate is None else self.learning_rate
