"""Pick something up and put it somewhere, as a function of the simulator's present state.

There is no timer and no memory of the phase: whoever disturbs the arm, the next decision fits the state they left.
The only hysteresis is physical, in the gap between the fingers.
Knows how to approach, close, lift, carry and let go; the grasp and the placement are given as rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sim.expert.grasps import Grasp, GraspRule
from sim.expert.placement import ARRIVING, Placement, PlacementRule
from sim.expert.rotations import angle_between, nearest_symmetric
from sim.expert.servo import (
    CLOSE,
    CREEP,
    CRUISE,
    GAIN,
    METRES_PER_STEP,
    OPEN,
    Decision,
    above,
    lean_back,
    ramp,
    servo,
    unit_clip,
)
from sim.expert.state import Goal, SimulatorState

BACK_OFF = 0.03  # metres ahead of the hand at which it aims, away from the object, while half-closed fingers open
FREE = (0.04, 0.12)  # horizontal distances from grasp or goal between which the way becomes free
HELD_WITHIN = 0.06  # a thing touched by both fingers is held only if the grasp is this near
AROUND = 0.03  # nearer to the grasp than this, the fingers are still around a thing that was let go
# Fingers close within so many metres of the grasp, sideways and along the tool, and so many radians: first values for
# those that have closed so far that a camera sees it (first gap), second ones for open fingers.
CLOSE_GAPS, CLOSE_WITHIN, CLOSE_ANGLES = (0.068, 0.079), (0.022, 0.008), (0.60, 0.30)
BESIDE = CLOSE_WITHIN[1]
OPENED = (0.03, 0.06)  # gaps between which fingers that let go become free to rise
ALIGNED, TWISTED = 0.30, 0.60  # angles between which the hand stays ever higher above the grasp, up to hover height
TURN_FIRST = 0.35  # beyond this angle turn at `turn_at`, where that is given
FOLDED = 0.36  # horizontal distance of the hand from the robot's base below which the elbow is at its limit
APPROACH_SPEED, LIFT_SPEED, LOWER_SPEED = 0.9, 0.12, 0.6


@dataclass(frozen=True, slots=True)
class Approach:
    """How the open hand comes to a grasp. Lengths are metres.

    hover: height above the grasp at which the hand is moved sideways when near.
    safe_height: world height for the way there from afar.
    open_gap: fingers narrower than this are opened before the hand goes down.
    empty_gap: fingers at most this far apart hold nothing and are opened again.
    lean: tip the hand back where the arm reaches far.
    turn_at: a free place to go to and turn the hand while it is far from the grasp's rotation.
    max_turn: cap on the rotation while reaching, in action units.
    """

    hover: float
    safe_height: float
    open_gap: float = 0.07
    empty_gap: float = 0.004
    lean: bool = False
    turn_at: Callable[[SimulatorState], np.ndarray] | None = None
    max_turn: float = 0.5


class PickAndPlace:
    """Bring the object that `goal`, `(predicate, object, place)`, is about from wherever it is to where it belongs.

    Made for one episode: it remembers the height of the first grasp, above which a held object counts as lifted.
    """

    def __init__(
        self, state: SimulatorState, goal: Goal, grasp: GraspRule, placement: PlacementRule, approach: Approach
    ) -> None:
        self.goal, self.grasp, self.placement, self.approach = goal, grasp, placement, approach
        _, self.name, place = goal
        self.focus = self.name, place
        self._geoms = state.geoms_of_object(self.name)
        self._first_grasp_height = float(grasp(state).position[2])

    def __call__(self, state: SimulatorState) -> Decision:
        grasp = self._reachable_grasp(state)
        if state.holds(self.goal):
            return self._let_go(state, grasp)
        placement = self.placement(state)
        if self.holding(state):
            return self._carry(state, grasp, placement)
        if placement.above_goal and state.finger_gap > self.approach.empty_gap:
            return self._let_go(state, grasp)
        return self._reach(state, grasp)

    def holding(self, state: SimulatorState) -> bool:
        """Whether the object is between the fingers."""
        near = np.linalg.norm(state.hand_position - self.grasp(state).position) < HELD_WITHIN
        return bool(near) and all(state.finger_contacts(self._geoms))

    def leave(self, state: SimulatorState) -> Decision | None:
        """Let go of the object and rise; None once the fingers are above it."""
        grasp = self._reachable_grasp(state)
        way = state.hand_position - grasp.position
        around = np.hypot(*way[:2]) < AROUND and abs(way[2]) < AROUND
        return self._let_go(state, grasp) if around else None

    def _reachable_grasp(self, state: SimulatorState) -> Grasp:
        grasp = self.grasp(state)
        rotation = nearest_symmetric(grasp.rotation, state.hand_rotation)
        return Grasp(grasp.position, lean_back(state, rotation) if self.approach.lean else rotation)

    def _let_go(self, state: SimulatorState, grasp: Grasp) -> Decision:
        rise = ramp(state.finger_gap, OPENED, (CREEP, 0.05)) if self._free(state) else CREEP
        hand = state.hand_position
        # The fingers keep the object in their middle while they are around it, or it hangs on one of them.
        beside = ramp(abs(float(hand[2] - grasp.position[2])), (AROUND / 2, AROUND), (1.0, 0.0))
        target = hand + np.array([*beside * (grasp.position - hand)[:2], rise])
        return Decision(servo(state, target, grasp.rotation, OPEN, planar=0.25, vertical=0.5), "let go")

    def _free(self, state: SimulatorState) -> bool:
        """Whether neither finger touches the object."""
        return not any(state.finger_contacts(self._geoms))

    def _carry(self, state: SimulatorState, grasp: Grasp, placement: Placement) -> Decision:
        hand = state.hand_position
        offset, distance = placement.offset, float(np.hypot(*placement.offset))
        radii = (placement.near, placement.far)
        height = ramp(distance, radii, (placement.release_height, placement.travel_height))
        # Horizontal speed only as far as the height permits; 2 cm of slack keep the hand from stopping at the top.
        least = ramp(distance, radii, (placement.release_height, placement.travel_height - 0.02))
        planar = unit_clip(1.0 - (least - hand[2]) / placement.blend) if hand[2] < least else 1.0
        release = distance < placement.release_radius and hand[2] - placement.release_height < placement.release_margin
        if placement.detour is not None:
            offset, height, planar = placement.detour.offset, placement.detour.height, placement.detour.planar
            release = False
        # The lift starts softly instead of waiting for the grip to firm up; a thing that fell lower is lifted at speed.
        lifted = abs(hand[2] - self._first_grasp_height)
        speed = min(unit_clip(LIFT_SPEED + lifted / 0.03, LIFT_SPEED), CRUISE) if height > hand[2] else LOWER_SPEED
        phase = "release" if release else "lift" if planar < 0.5 else "place" if distance < placement.near else "carry"
        slow = _gently(distance, placement.stiffness)
        target = np.array([hand[0] + slow * offset[0], hand[1] + slow * offset[1], height])
        gripper = OPEN if release else CLOSE
        action = servo(state, target, grasp.rotation, gripper, gain=GAIN, planar=CRUISE * planar + 1e-6, vertical=speed)
        freedom = planar * ramp(distance, FREE, (0.0, 1.0)) if placement.detour is None else 0.0
        return Decision(action, phase, freedom=freedom)

    def _reach(self, state: SimulatorState, grasp: Grasp) -> Decision:
        approach, hand, gap = self.approach, state.hand_position, state.finger_gap
        away = -grasp.rotation[:, 2]  # from the object back along the tool
        along = float((hand - grasp.position) @ away)
        sideways = hand - grasp.position - along * away
        lateral = float(np.linalg.norm(sideways))
        angle = angle_between(grasp.rotation, state.hand_rotation)
        within, turned = ramp(gap, CLOSE_GAPS, CLOSE_WITHIN), ramp(gap, CLOSE_GAPS, CLOSE_ANGLES)
        near = lateral < within and abs(along) < within and angle < turned
        if gap > approach.empty_gap and near:
            target = grasp.position.copy()
            if not self._free(state):
                target[2] = hand[2] + CREEP
            return Decision(servo(state, target, grasp.rotation, CLOSE, planar=0.3, vertical=0.3), "close")
        outward = (hand - state.base_position) * [1.0, 1.0, 0.0]
        reach = float(np.linalg.norm(outward))
        if reach < min(FOLDED, float(np.hypot(*(grasp.position - state.base_position)[:2])) - 0.03):
            # A folded arm cannot rise or turn, so the funnel below would wait for ever.
            target = above(hand + outward * (0.05 / reach), 0.02)
            return Decision(servo(state, target, state.hand_rotation, OPEN), "unfold")
        if approach.turn_at is not None and angle > TURN_FIRST:
            action = servo(state, approach.turn_at(state), grasp.rotation, OPEN, gain=GAIN, turn=0.8)
            return Decision(action, "turn")

        # A funnel along the tool: the height above the grasp is a function of the lateral error.
        safe = max(approach.hover, approach.safe_height - grasp.position[2])
        height = ramp(lateral, (BESIDE, BESIDE + 0.02, 0.10), (0.0, approach.hover, safe))
        height = max(height, ramp(angle, (ALIGNED, TWISTED), (0.0, approach.hover)))
        if gap < approach.open_gap and not near:
            height = max(height, min(approach.hover, along + BACK_OFF))
        if lateral > 0.6 * BESIDE and state.gripper_touches_other(self.name):
            height = max(height, along + 0.03)
        # No sideways sweep below the funnel, nor low down with fingers that are half closed.
        planar = unit_clip(1.0 - (height - 0.015 - along) / 0.04) if along < height - 0.015 else 1.0
        closed = ramp(gap, (approach.open_gap - 0.02, approach.open_gap), (1.0, 0.0))
        planar *= 1.0 - closed * ramp(along, (approach.hover / 2, approach.hover), (1.0, 0.0))
        correction = -sideways * planar * _gently(lateral)
        cap = (CRUISE * planar + 1e-6) * METRES_PER_STEP / GAIN
        correction *= min(1.0, cap / max(float(np.linalg.norm(correction)), 1e-9))
        limit = APPROACH_SPEED * METRES_PER_STEP / GAIN
        descent = away * np.clip((height - along) * _gently(abs(height - along)), -limit, limit)
        target = hand + correction + descent
        action = servo(state, target, grasp.rotation, OPEN, gain=GAIN, vertical=APPROACH_SPEED, turn=approach.max_turn)
        return Decision(action, "reach", freedom=planar * ramp(lateral, FREE, (0.0, 1.0)))


def _gently(distance: float, stiffness: float = ARRIVING) -> float:
    """Share of the usual gain at so many metres from where the hand stops; at full gain it goes 1 cm too far."""
    return ramp(distance, (0.01, 0.05), (stiffness, 1.0))


class PutDown(PickAndPlace):
    """Picks and places, but lets go only where the placement says so, though the goal may hold on the way there."""

    def leave(self, state: SimulatorState) -> Decision | None:
        if self.holding(state):
            return self._carry(state, self._reachable_grasp(state), self.placement(state))
        return super().leave(state)
