"""Rotation matrices the expert needs every step: about an axis, as a vector, and the gripper's own symmetry.

Plain numpy on purpose: the rotation vector is taken several times per control step, where scipy's `Rotation` costs
six times as much (49 against 8 microseconds).
"""

from __future__ import annotations

import numpy as np

# The grip site's axes in the world when the hand points straight down: the fingers slide along world y.
HAND_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
_HALF_TURN_ABOUT_TOOL = np.diag([-1.0, -1.0, 1.0])


def about_x(angle: float) -> np.ndarray:
    """Rotation matrix `[3, 3]` by `angle` radians about x."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def about_y(angle: float) -> np.ndarray:
    """Rotation matrix `[3, 3]` by `angle` radians about y."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def about_z(angle: float) -> np.ndarray:
    """Rotation matrix `[3, 3]` by `angle` radians about z."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """The logarithm of a rotation matrix: axis times angle in radians, `[3]`, angle in [0, pi]."""
    angle = np.arccos(np.clip((np.trace(rotation) - 1.0) / 2.0, -1.0, 1.0))
    if angle < 1e-6:
        return np.zeros(3)
    skew = np.array(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]],
    )
    if np.sin(angle) > 1e-4:
        return skew * (angle / (2.0 * np.sin(angle)))
    # Half a turn: the antisymmetric part vanishes, so the axis is read from a column of (R + 1) / 2 = axis axisᵀ.
    outer = (rotation + np.eye(3)) / 2.0
    column = outer[:, np.argmax(np.diag(outer))]
    return column * (angle / np.linalg.norm(column))


def angle_between(first: np.ndarray, second: np.ndarray) -> float:
    """Angle in radians of the rotation that takes `second` to `first`."""
    return float(np.arccos(np.clip((np.sum(first * second) - 1.0) / 2.0, -1.0, 1.0)))


def nearest_symmetric(rotation: np.ndarray, current: np.ndarray) -> np.ndarray:
    """`rotation`, or the same turned by pi about the tool axis if that is nearer: the two fingers are alike."""
    turned = rotation @ _HALF_TURN_ABOUT_TOOL
    return rotation if np.sum(rotation * current) >= np.sum(turned * current) else turned
