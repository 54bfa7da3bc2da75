"""What a bin is on the robot: millimetres, milliradians and the side of the gripper.

Knows the statistics that un-normalise actions and what the controller makes of an action of 1. Knows no logits and no
rules. All arithmetic is float64 numpy on the host: the tables are made once.

The figures are *commanded* motion: within one control tick an arm covers only part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from policy.openvla.action_tokens import BIN_CENTERS, ActionStatistics
from policy.openvla.config import ACTION_BINS, ACTION_DIMENSIONS

TRANSLATIONS, ROTATIONS, GRIPPER = slice(0, 3), slice(3, 6), 6
DIMENSION_UNITS = ("mm", "mm", "mm", "mrad", "mrad", "mrad", "side")

# The gripper is binarised before it is executed: above this value it opens (run_libero_eval.py of the OpenVLA
# repository: sign(2 g - 1)).
GRIPPER_OPENS_ABOVE = 0.5


@dataclass(frozen=True, slots=True)
class ControllerScale:
    """What the controller makes of an un-normalised pose value of 1, per control tick.

    The defaults are robosuite's OSC_POSE as LIBERO uses it. For data in metres and radians, such as BridgeData V2,
    both are 1000. Raises ValueError for a scale that is not positive and finite.
    """

    millimetres: float = 50.0
    milliradians: float = 500.0

    def __post_init__(self) -> None:
        for name in ("millimetres", "milliradians"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(
                    f"{name} is {value}; it must be a positive number: what an action of 1 moves the robot by"
                )


LIBERO_CONTROLLER = ControllerScale()
# What is known of data sets by the beginning of their names; BridgeData V2 is in metres and radians.
_CONTROLLERS = {"libero": LIBERO_CONTROLLER, "bridge": ControllerScale(1000.0, 1000.0)}


def controller_of(dataset: str) -> ControllerScale | None:
    """The controller of the robot that a data set was recorded with, None where it is not known."""
    return next((scale for name, scale in _CONTROLLERS.items() if dataset.startswith(name)), None)


@dataclass(frozen=True, slots=True, eq=False)
class ActionUnits:
    """The 256 bins of each action dimension in physical units.

    motions: float64 `[7, 256]`, commanded motion by dimension and bin: mm (0-2), mrad (3-5), gripper value (6). The
        last two bins of a dimension are equal: tokens decode to 255 bin centres (`policy.openvla.action_tokens`).
    """

    motions: np.ndarray

    def __post_init__(self) -> None:
        if self.motions.shape != (ACTION_DIMENSIONS, ACTION_BINS):
            raise ValueError(f"motions must be [{ACTION_DIMENSIONS}, {ACTION_BINS}], got {list(self.motions.shape)}")
        if not np.isfinite(self.motions).all() or (np.diff(self.motions) < 0).any():
            raise ValueError("motions must be finite and must not fall from bin to bin; check q01 and q99")
        self.motions.flags.writeable = False

    @classmethod
    def from_statistics(cls, statistics: ActionStatistics, controller: ControllerScale | None = None) -> ActionUnits:
        """The units of a data set under a controller, LIBERO's where none is given.

        Raises ValueError for statistics of another number of dimensions than 7.
        """
        controller = controller or ControllerScale()
        if len(statistics.q01) != ACTION_DIMENSIONS:
            raise ValueError(f"need statistics of {ACTION_DIMENSIONS} action dimensions, got {len(statistics.q01)}")
        normalized = BIN_CENTERS[np.minimum(np.arange(ACTION_BINS), len(BIN_CENTERS) - 1)]
        values = statistics.unnormalize(np.repeat(normalized[:, None], ACTION_DIMENSIONS, axis=1)).T  # [7, 256]
        scale = np.ones(ACTION_DIMENSIONS)
        scale[TRANSLATIONS], scale[ROTATIONS] = controller.millimetres, controller.milliradians
        return cls(values * scale[:, None])

    @property
    def bin_sizes(self) -> np.ndarray:
        """Float64 `[7]`: mm, mrad or gripper value per bin; 0 for a dimension that never changed in the data.

        (q99 - q01) / 255 times the controller's scale.
        """
        return self.motions[:, 1] - self.motions[:, 0]

    @property
    def zero_bins(self) -> np.ndarray:
        """Int64 `[7]`: the bin that commands the least motion in each dimension (meaningless for the gripper)."""
        return np.abs(self.motions).argmin(axis=1)

    @property
    def gripper_opens(self) -> np.ndarray:
        """Bool `[256]`: whether the gripper's bin is executed as "open"."""
        return self.motions[GRIPPER] > GRIPPER_OPENS_ABOVE

    def in_bins(self, millimetres: float, milliradians: float) -> np.ndarray:
        """A length and an angle in bins of the six pose dimensions, float64 `[6]`.

        Infinite where a bin has no size and the tolerance is not zero: such a dimension cannot deviate.
        """
        sizes = self.bin_sizes[:GRIPPER]
        tolerances = np.repeat([millimetres, milliradians], 3)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(tolerances == 0, 0.0, tolerances / sizes)

    def deviations(self, emitted: ArrayLike, reference: ArrayLike) -> np.ndarray:
        """Commanded motion of `emitted` minus that of `reference`, bins `[..., 7]` each: float64 `[..., 7]`.

        Columns 0-2 in mm, 3-5 in mrad; column 6 is +1 where only `emitted` opens the gripper, -1 where only
        `reference` does.
        """
        difference = self._moved(emitted) - self._moved(reference)
        opens = self.gripper_opens.astype(np.float64)
        difference[..., GRIPPER] = opens[np.asarray(emitted)[..., GRIPPER]] - opens[np.asarray(reference)[..., GRIPPER]]
        return difference

    def _moved(self, bins: ArrayLike) -> np.ndarray:
        return self.motions[np.arange(ACTION_DIMENSIONS), np.asarray(bins)]
