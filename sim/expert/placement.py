"""Where a held object has to go, as the pick-and-place law wants to know it.

Knows destinations and the heights on the way; knows nothing of grasps, and leaves the motion to `pick_and_place`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sim.expert.servo import ramp
from sim.expert.state import SimulatorState

ARRIVING = 0.6  # share of the usual gain where a motion ends


@dataclass(frozen=True, slots=True)
class Detour:
    """An intermediate goal that overrides the placement while it lasts; the object is not let go meanwhile.

    offset: horizontal way `[2]` still to go. height: of the hand. planar: share of the full horizontal speed, 0..1.
    """

    offset: np.ndarray
    height: float
    planar: float


@dataclass(frozen=True, slots=True)
class Placement:
    """The goal for a held object in its present pose. Heights are the hand's, metres.

    offset: horizontal way `[2]` the object still has to go.
    release_height, travel_height: where to let go, and how high to travel.
    near, far: distances from the goal between which the height falls from travelling to releasing.
    release_radius, release_margin: let go within this distance and this height above `release_height`.
    blend: height below the travel path over which horizontal speed falls to nothing.
    stiffness: share of the usual gain with which the hand arrives: at the full one it goes 1 cm too far, but pushes
        what got caught at an edge over it.
    above_goal: whether an object that is not held lies where it was to be let go; the hand must not grasp it again.
    """

    offset: np.ndarray
    release_height: float
    travel_height: float
    above_goal: bool
    near: float = 0.03
    far: float = 0.11
    release_radius: float = 0.02
    release_margin: float = 0.012
    blend: float = 0.07
    stiffness: float = ARRIVING
    detour: Detour | None = None


PlacementRule = Callable[[SimulatorState], Placement]


@dataclass(frozen=True, slots=True)
class PlaceOn:
    """Put an object's origin over a point, its bottom at that point's height.

    target: the point `[3]`. travel: height of the object's bottom on the way.
    high_start: (near, far, height) for objects that come from high up: beyond `far` metres from the target the bottom
    travels at `height`, falling to `travel` at `near`.
    detour: called with the state and the placement's travelling height of the hand.
    """

    name: str
    target: Callable[[SimulatorState], np.ndarray]
    travel: float
    near: float = 0.03
    far: float = 0.11
    blend: float = 0.07
    release_margin: float = 0.012
    high_start: tuple[float, float, float] | None = None
    detour: Callable[[SimulatorState, float], Detour | None] | None = None

    def __call__(self, state: SimulatorState) -> Placement:
        bottom = state.bounds(self.name)[0][2]
        target = self.target(state)
        offset = (target - state.position(self.name))[:2]
        distance = float(np.hypot(*offset))
        hand_above_bottom = state.hand_position[2] - bottom
        travel = self.travel
        if self.high_start is not None:
            near, far, height = self.high_start
            travel = ramp(distance, (near, far), (travel, height))
        return Placement(
            offset=offset,
            release_height=target[2] + hand_above_bottom,
            travel_height=travel + hand_above_bottom,
            above_goal=distance < 0.03 and bottom < target[2] + 0.05,
            near=self.near,
            far=self.far,
            release_margin=self.release_margin,
            blend=self.blend,
            detour=None if self.detour is None else self.detour(state, travel + hand_above_bottom),
        )


@dataclass(frozen=True, slots=True)
class DropIntoBasket:
    """Carry the middle of an object over the basket, lower it 5 cm below the rim and let go.

    shift: from the middle of the basket along world x, metres.
    The task succeeds when the object's *middle* is inside, which often happens while it is still held.
    """

    name: str
    basket: str
    shift: float = 0.0

    def __call__(self, state: SimulatorState) -> Placement:
        low, high = state.bounds(self.name)
        inside = state.position(self.basket)
        rim = inside[2] + 0.085
        offset = inside[:2] + np.array([self.shift, 0.0]) - (low + high)[:2] / 2
        hand_above_bottom = state.hand_position[2] - low[2]
        return Placement(
            offset=offset,
            release_height=rim - 0.05 + hand_above_bottom,
            travel_height=rim + 0.03 + hand_above_bottom,
            above_goal=bool(np.abs(offset).max() < 0.06),
            near=0.03,
            far=0.10,
            release_radius=0.03,
            release_margin=0.02,
        )
