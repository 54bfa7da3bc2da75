"""Put an upright book into a compartment of the desk caddy: turned on the way, spine across the compartment.

Knows the shapes of book and caddy; leaves the motion to `pick_and_place`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.expert.grasps import Grasp
from sim.expert.pick_and_place import Approach, PickAndPlace
from sim.expert.placement import Placement
from sim.expert.rotations import HAND_DOWN, about_z
from sim.expert.servo import above, ramp
from sim.expert.state import Goal, SimulatorState

_DEPTH = 0.03  # of the grip site below the book's top
_CADDY_RIM = 0.17  # height of the caddy's highest walls above its origin
_TURN_FROM, _TURN_BY = 0.02, 0.06  # heights above its caddy's foot over which a lifted book is turned, metres
_ALIGNED, _ASKEW = (
    np.deg2rad(8),
    np.deg2rad(25),
)  # lower a book turned right within the first, stay up beyond the second


def _across(state: SimulatorState, name: str) -> float:
    """Angle from world x, in -pi/4..3pi/4, of the direction in which the book is thin.

    The two fingers are alike, so angles half a turn apart are the same; the books of LIBERO start at 45 to 90 degrees
    and are turned down to 0 from there, so the jump is put where they never are.
    """
    thin = state.rotation(name)[:, 0]
    return float((np.arctan2(thin[1], thin[0]) + np.pi / 4) % np.pi - np.pi / 4)


@dataclass(frozen=True, slots=True)
class BookGrasp:
    """From above across an upright book; once it is lifted, the same grasp with the book turned into the compartment.

    foot: height of what the book and the caddy stand on.
    """

    name: str
    foot: float

    def __call__(self, state: SimulatorState) -> Grasp:
        low, high = state.bounds(self.name)
        angle = _across(state, self.name)
        angle *= ramp(low[2] - self.foot, (_TURN_FROM, _TURN_BY), (1.0, 0.0))
        position = np.array([*(low + high)[:2] / 2, high[2] - _DEPTH])
        return Grasp(position, about_z(angle - np.pi / 2) @ HAND_DOWN)


@dataclass(frozen=True, slots=True)
class IntoCompartment:
    """Placement rule: over the caddy's walls, aligned, and down into the region called `region`."""

    name: str
    caddy: str
    region: str

    def __call__(self, state: SimulatorState) -> Placement:
        low, high = state.bounds(self.name)
        rim = float(state.position(self.caddy)[2]) + _CADDY_RIM
        offset = state.position(self.region)[:2] - (low + high)[:2] / 2
        hand_above_bottom = state.hand_position[2] - low[2]
        travel = rim + 0.015 + hand_above_bottom
        lowered = ramp(abs(_across(state, self.name)), (_ALIGNED, _ASKEW), (1.0, 0.0))
        return Placement(
            offset=offset,
            release_height=travel - lowered * 0.09,
            travel_height=travel,
            above_goal=bool(np.hypot(*offset) < 0.04) and low[2] < rim,
            near=0.004,
            far=0.02,
            release_radius=0.02 * lowered,
            stiffness=1.0,
        )


def book_into_caddy(state: SimulatorState, goal: Goal, caddy: str) -> PickAndPlace:
    """The skill for one book."""
    _, name, region = goal
    foot = float(state.bounds(name)[0][2])
    approach = Approach(hover=0.07, safe_height=float(above(state.position(name), 0.20)[2]))
    return PickAndPlace(state, goal, BookGrasp(name, foot), IntoCompartment(name, caddy, region), approach)
