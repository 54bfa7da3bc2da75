"""What the policy is trained to do: soft targets over action bins and an auxiliary reading of the scene.

Bins are counted as the action tokenizer counts them: k = base - id, 1..256, bin k holding [-1 + (k-1)·w, -1 + k·w)
with w = 2/255; 255 and 256 decode to the same value. Knows nothing of data loading or of the optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

BINS = 256
POSE_DIMENSIONS = 6
IGNORED = -1
# Of `own_choice`, in bins: how far probabilities belong together, and how they are smoothed to find where.
_NEIGHBOURHOOD, _SMOOTHING = 12, 4.0


@dataclass(frozen=True)  # no slots: jsonargparse reads a nested default's __dict__
class ObjectiveConfig:
    """sigma_bins: width of the Gaussian target over pose bins; a miss by one bin is no miss by a hundred.
    final_sigma_bins: width at the end. Wide targets teach faster, but a policy trained on them has its best bins nearly
        tied, so that rounding decides between them; `sigma_at` narrows them late.
    gripper_weight: weight of the gripper's cross-entropy, 1 = as one of seven dimensions.
    auxiliary_weight: weight of the smooth-L1 loss on the privileged scene reading.
    own_choice_from: share of the run after which poses are taught, narrowly, what the policy itself as it is then would
        choose (`own_choice`). A policy that learnt from the expert is unsure by several bins and has ties between
        them; which one wins is then a matter of rounding, and differs from frame to frame. 1 for never.
    own_choice_sigma_bins: width of that target: the narrower, the fewer choices are left to rounding.
    token_jitter: teacher-forced pose tokens are moved by up to this many bins, so that later dimensions tolerate
        errors in earlier ones.
    """

    sigma_bins: float = 2.0
    final_sigma_bins: float = 2.0
    gripper_weight: float = 1.0
    auxiliary_weight: float = 0.5
    own_choice_from: float = 1.0
    own_choice_sigma_bins: float = 0.7
    token_jitter: int = 2

    def __post_init__(self) -> None:
        widths = self.sigma_bins, self.final_sigma_bins, self.own_choice_sigma_bins
        if min(widths) <= 0:
            raise ValueError(
                f"objective.sigma_bins, final_sigma_bins and own_choice_sigma_bins must be positive, got {widths}"
            )
        if not 0 <= self.own_choice_from <= 1:
            raise ValueError(f"objective.own_choice_from is a share of the run, 0..1, got {self.own_choice_from}")
        if self.gripper_weight < 0 or self.auxiliary_weight < 0 or self.token_jitter < 0:
            raise ValueError(f"objective weights and jitter must not be negative, got {self}")

    def sigma_at(self, progress: float) -> float:
        """Width after this share of the run: the first one up to 0.5, the final one from 0.9, geometric between."""
        share = min(1.0, max(0.0, (progress - 0.5) / 0.4))
        return self.sigma_bins ** (1 - share) * self.final_sigma_bins**share


def bin_of(normalized: torch.Tensor) -> torch.Tensor:
    """Normalised actions in [-1, 1] -> bin k in 1..256, as `ActionTokenizer` counts (int64, same shape)."""
    return torch.bucketize(normalized.double().clamp(-1, 1), _edges(normalized.device), right=True)


@cache  # bringing them to a device anew would make the host wait for all that is under way there
def _edges(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.linspace(-1, 1, BINS)).to(device)  # torch.linspace differs in the last bit


def position_of(normalized: torch.Tensor) -> torch.Tensor:
    """Where values sit on the axis where bin k has its centre at k: x at (x + 1)/2 · 255 + 1/2, float, same shape.

    Only x = 1 is in bin 256, so that the last place is the centre of bin 255.
    """
    return ((normalized.clamp(-1, 1) + 1) / 2 * (BINS - 1) + 0.5).clamp(1, BINS - 1)


def soft_targets(position: torch.Tensor, sigma_bins: float) -> torch.Tensor:
    """Gaussian over bins 1..256 about exact places, not bins: `[B, 6] -> [B, 6, 256]`, rows sum to 1."""
    centers = torch.arange(1, BINS + 1, device=position.device, dtype=position.dtype)
    return torch.softmax(-((centers - position[..., None]) ** 2) / (2 * sigma_bins**2), -1)


def log_probabilities_of_bins(logits: torch.Tensor, action_base: int) -> torch.Tensor:
    """`[..., V]` to `[..., 256]` for bins 1..256; over the whole vocabulary, so that words must learn to lose."""
    # action ids count down: bin k has id base - k
    return F.log_softmax(logits.float(), -1)[..., action_base - BINS : action_base].flip(-1)


def own_choice(log_probabilities: torch.Tensor) -> torch.Tensor:
    """The place that a policy means, `[..., 256]` to float `[...]`: the mean of its probabilities about their summit.

    The summit is that of the probabilities smoothed over a few bins, so that no single bin decides; what is further
    than `_NEIGHBOURHOOD` bins away is another intention and does not count.
    """
    probabilities = log_probabilities.exp()
    offsets = torch.arange(-_NEIGHBOURHOOD, _NEIGHBOURHOOD + 1, device=probabilities.device)
    kernel = torch.softmax(-offsets.float().square() / (2 * _SMOOTHING**2), 0)
    rows = probabilities.reshape(-1, 1, BINS)
    smooth = F.conv1d(rows, kernel[None, None], padding=_NEIGHBOURHOOD).view_as(probabilities)
    bins = torch.arange(1, BINS + 1, device=probabilities.device, dtype=probabilities.dtype)
    summit = smooth.argmax(-1, keepdim=True) + 1
    near = probabilities * ((bins - summit).abs() <= _NEIGHBOURHOOD)
    return (near * bins).sum(-1) / near.sum(-1)


def jitter_bins(bins: torch.Tensor, amount: int) -> torch.Tensor:
    """Moves each pose bin (`[B, 6]`) by a uniform whole number in ±amount, within 1..256."""
    if amount == 0:
        return bins
    return (bins + torch.randint_like(bins, -amount, amount + 1)).clamp(1, BINS)


@dataclass(frozen=True, slots=True)
class Losses:
    """total drives the optimiser; the rest is for the log. Scalars, `accuracy` and `near` are `[7]` shares."""

    total: torch.Tensor
    pose: torch.Tensor
    gripper: torch.Tensor
    auxiliary: torch.Tensor
    accuracy: torch.Tensor
    near: torch.Tensor


def losses(
    logits: torch.Tensor,
    reading: torch.Tensor,
    normalized: torch.Tensor,
    privileged: torch.Tensor,
    action_base: int,
    config: ObjectiveConfig,
    progress: float,
    choice: torch.Tensor | None = None,
) -> Losses:
    """Loss of a batch.

    logits: `[B, 7, V]` over the whole vocabulary (words must learn to lose).
    reading, privileged: `[B, K]`, standardised.
    normalized: `[B, 7]` actions after normalisation by q01/q99 (gripper 0 or 1).
    action_base: the id one above the highest action id. progress: share of the run that is done.
    choice: places `[B, 6]` that poses are taught instead of the actions', see `own_choice`.
    """
    by_bin = log_probabilities_of_bins(logits, action_base)  # [B, 7, 256]
    places = position_of(normalized[:, :POSE_DIMENSIONS].float()) if choice is None else choice
    sigma = config.sigma_at(progress) if choice is None else config.own_choice_sigma_bins
    pose_target = soft_targets(places, sigma)
    pose = -(pose_target * by_bin[:, :POSE_DIMENSIONS]).sum(-1).mean()
    bins = bin_of(normalized)
    gripper = F.nll_loss(by_bin[:, POSE_DIMENSIONS], bins[:, POSE_DIMENSIONS] - 1)
    auxiliary = F.smooth_l1_loss(reading.float(), privileged.float())
    weight = config.gripper_weight
    total = (POSE_DIMENSIONS * pose + weight * gripper) / (
        POSE_DIMENSIONS + weight
    ) + config.auxiliary_weight * auxiliary
    with torch.no_grad():
        miss = (by_bin.argmax(-1) + 1 - bins).abs()
        accuracy, near = (miss == 0).float().mean(0), (miss <= 4).float().mean(0)
    return Losses(total, pose.detach(), gripper.detach(), auxiliary.detach(), accuracy, near)
