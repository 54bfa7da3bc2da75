"""Pull a drawer of the wooden cabinet open by its bar.

Knows the cabinet's geometry; the drawer's slide joint reads 0 closed and falls to -0.16 m fully open.
"""

from __future__ import annotations

import numpy as np

from sim.expert.rotations import HAND_DOWN, about_x, about_z, angle_between, nearest_symmetric
from sim.expert.servo import CLOSE, CREEP, GAIN, OPEN, Decision, ramp, servo, unit_clip
from sim.expert.state import SimulatorState

CABINET = "wooden_cabinet_1"
# The collision box of each drawer's horizontal bar; boxes are numbered, not named, in LIBERO's asset.
_BAR = {"top": f"{CABINET}_g18", "middle": f"{CABINET}_g29"}
_TOOL_TILT = np.deg2rad(80)  # the tool points almost level at the cabinet, one finger above the bar and one below
_GRIPPED_GAP = 0.04  # both fingers touching and closer than this: the bar is held


class Drawer:
    """Opens the drawer called "top" or "middle"; a function of the state, as every skill.

    lift: height of the grasp above the middle of the bar, metres.
    """

    def __init__(self, state: SimulatorState, level: str, lift: float = 0.0) -> None:
        if level not in _BAR:
            raise ValueError(f"no recipe for the {level!r} drawer; the bars of {sorted(_BAR)} are known")
        self._bar_name = _BAR[level]
        self._bar = state.geom(self._bar_name)
        self._joint = f"{CABINET}_{level}_level"
        self._lift = np.array([0.0, 0.0, lift])

    def opening(self, state: SimulatorState) -> float:
        """How far the drawer is open, metres."""
        return -state.joint(self._joint)

    def gripped(self, state: SimulatorState) -> bool:
        """Whether both fingers hold the bar."""
        return all(state.finger_contacts(self._bar)) and state.finger_gap < _GRIPPED_GAP

    def __call__(self, state: SimulatorState) -> Decision:
        bar = state.position(self._bar_name) + self._lift
        outward = facing(state)
        yaw = np.arctan2(outward[1], outward[0]) - np.pi / 2
        rotation = nearest_symmetric(about_z(yaw) @ about_x(-_TOOL_TILT) @ HAND_DOWN, state.hand_rotation)
        hand, gap = state.hand_position, state.finger_gap
        out = float((hand - bar) @ outward)
        across = float(np.linalg.norm(hand - bar - out * outward))
        angle = angle_between(rotation, state.hand_rotation)
        if self.gripped(state):
            # Pull harder as the fingers firm up.
            pull = 0.02 + 0.05 * unit_clip((0.03 - gap) / 0.01 + 0.3)
            action = servo(state, bar + outward * pull, rotation, CLOSE, gain=GAIN, planar=0.8, vertical=0.8)
            return Decision(action, "pull")
        ready = across < 0.012 and abs(out) < 0.010 and angle < 0.2
        if ready or (0.006 < gap < 0.075 and across < 0.03 and abs(out) < 0.03):
            target = bar if gap > 0.075 else bar + outward * (out + CREEP)
            return Decision(servo(state, target, rotation, CLOSE, planar=0.3, vertical=0.3), "close")
        # A funnel along the cabinet's facing, wider while the hand is still turning.
        distance = ramp(across + 0.12 * max(0.0, angle - 0.1), (0.010, 0.04, 0.3), (0.0, 0.07, 0.12))
        if gap < 0.07:
            distance = max(distance, 0.06)
        sideways = unit_clip(1.0 - (distance - 0.02 - out) / 0.03, 0.1) if out < distance - 0.02 else 1.0
        way = bar + outward * distance - hand
        along = (way @ outward) * outward
        action = servo(state, hand + along + (way - along) * sideways, rotation, OPEN, gain=GAIN, turn=0.7)
        return Decision(action, "reach")

    def retreat(self, state: SimulatorState) -> Decision | None:
        """Let go of the bar and back off; None once the hand is clear of it."""
        way = state.hand_position - state.position(self._bar_name)
        distance = float(np.linalg.norm(way))
        if state.finger_gap < 0.06 and distance < 0.05:
            clear = state.hand_position + facing(state) * CREEP
            return Decision(servo(state, clear, state.hand_rotation, OPEN), "let go")
        if distance < 0.075 and way[2] < 0.10 and abs(way[0]) < 0.07:
            back = state.hand_position + facing(state) * 0.06 + [0.0, 0.0, 0.03]
            return Decision(servo(state, back, state.hand_rotation, OPEN), "back off")
        return None


def facing(state: SimulatorState) -> np.ndarray:
    """Horizontal unit vector `[3]` in which the cabinet's drawers open."""
    return -state.rotation(CABINET)[:, 1]
