"""The two tasks in which a bowl and the cabinet's top drawer get in each other's way.

Out of it: the bowl has to slide from under the cabinet's top before it is lifted.
Into it: the drawer is opened first, then the bowl goes round the drawer's front corner, up, and in from above.
"""

from __future__ import annotations

import numpy as np

from sim.expert.drawer import CABINET, Drawer, facing
from sim.expert.grasps import RimGrasp
from sim.expert.pick_and_place import Approach, PickAndPlace
from sim.expert.placement import Detour, Placement
from sim.expert.servo import Decision, ramp, unit_clip
from sim.expert.state import Goal, SimulatorState

_DRAWER_WALL_TOP = 1.125  # height of the top drawer's walls
_OPEN_ENOUGH = 0.152  # pull until here
_PUSHED_SHUT = 0.115  # and open again if the drawer was pushed back to here


class SlideOutOfDrawer:
    """A detour for a bowl that was just grasped in the open top drawer: out along the drawer, low, before it goes up.

    Made at the start of an episode, when the bowl is still in the drawer.
    """

    def __init__(self, state: SimulatorState, name: str, grasp: RimGrasp) -> None:
        self.name = name
        self._grasp_height = float(grasp(state).position[2])

    def __call__(self, state: SimulatorState, travel_height: float) -> Detour | None:
        outward = facing(state)
        bowl = state.position(self.name)
        # Way until the back of the bowl has left the cabinet's top.
        covered = 0.138 - float((bowl - state.position(CABINET)) @ outward)
        if state.bounds(self.name)[0][2] >= _DRAWER_WALL_TOP or covered <= -0.09:
            return None
        height = self._grasp_height + 0.012 if covered > 0.004 else travel_height
        return Detour(outward[:2] * max(0.0, covered), height, planar=1.0)


class IntoDrawer:
    """Placement rule: over the open top drawer, from the side and round its front corner."""

    def __init__(self, state: SimulatorState, name: str, drawer: Drawer, grasp: RimGrasp) -> None:
        self.name, self._drawer = name, drawer
        self._grasp_height = float(grasp(state).position[2])

    def __call__(self, state: SimulatorState) -> Placement:
        bowl, bottom = state.position(self.name), state.bounds(self.name)[0][2]
        cabinet, opening = state.position(CABINET), self._drawer.opening(state)
        hand_above_bottom = state.hand_position[2] - bottom
        # In these scenes the cabinet faces +y, up to the few degrees that the drop margin forgives.
        middle = np.array([cabinet[0] - 0.003, cabinet[1] + 0.0786 + 0.5 * (opening - 0.01)])
        front = cabinet[1] + 0.080 + opening
        offset = middle - bowl[:2]
        distance = float(np.hypot(*offset))
        detour = None
        if bottom < _DRAWER_WALL_TOP and distance > 0.05:
            missing = front + 0.062 - bowl[1]  # way in +y until the bowl is past the front panel
            climb = (0.955, 0.975, _DRAWER_WALL_TOP + 0.03)
            detour = Detour(
                offset=np.array([0.0, max(0.0, missing + 0.012)]),
                height=ramp(-missing, (-0.06, -0.01, 0.0), climb) + hand_above_bottom,
                planar=unit_clip((state.hand_position[2] - self._grasp_height) / 0.03),
            )
        return Placement(
            offset=offset,
            release_height=1.085 + hand_above_bottom,
            travel_height=_DRAWER_WALL_TOP + 0.025 + hand_above_bottom,
            above_goal=distance < 0.05 and bottom < _DRAWER_WALL_TOP + 0.02,
            near=0.025,
            far=0.05,
            release_radius=0.03,
            release_margin=0.02,
            blend=0.025,
            detour=detour,
        )


class BowlIntoDrawer:
    """Open the top drawer, back off, and put the bowl inside."""

    def __init__(self, state: SimulatorState, goal: Goal) -> None:
        name = goal[1]
        self._drawer = Drawer(state, "top")
        # The hand is tilted, or else the palm would push the drawer shut again.
        grasp = RimGrasp(name, depth=0.009, tilt=np.deg2rad(30))
        approach = Approach(
            hover=0.07,
            safe_height=1.03,
            empty_gap=0.0006,
            turn_at=lambda now: np.array([now.position(name)[0], 0.14, 1.06]),
            max_turn=0.7,
        )
        placement = IntoDrawer(state, name, self._drawer, grasp)
        self._bowl = PickAndPlace(state, goal, grasp, placement, approach)

    def __call__(self, state: SimulatorState) -> Decision:
        opening = self._drawer.opening(state)
        if opening < _PUSHED_SHUT or (opening < _OPEN_ENOUGH and self._drawer.gripped(state)):
            decision, part = self._drawer(state), "drawer"
        elif (retreat := self._drawer.retreat(state)) is not None:
            decision, part = retreat, "drawer"
        else:
            decision, part = self._bowl(state), "bowl"
        return Decision(decision.action, f"{part}: {decision.phase}")
