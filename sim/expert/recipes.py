"""Which skill solves which task, told from the goal predicate of the task's definition rather than from its wording.

Covers libero_object, libero_spatial, libero_goal and libero_10, and variants of them that keep the scene's objects and
goals.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sim.expert.book import book_into_caddy
from sim.expert.bottom_drawer import PushDrawerShut, bowl_into_open_drawer
from sim.expert.bowl_and_drawer import BowlIntoDrawer, SlideOutOfDrawer
from sim.expert.drawer import Drawer
from sim.expert.grasps import MUG_RIMS, LidGrasp, RimGrasp, TopGrasp, clear_top_grasp
from sim.expert.knob import Knob
from sim.expert.microwave import SwingDoorShut, mug_into_microwave
from sim.expert.pick_and_place import Approach, PickAndPlace
from sim.expert.placement import DropIntoBasket, PlaceOn
from sim.expert.plate import SlidePlate
from sim.expert.sequence import Sequence, Stage
from sim.expert.servo import Decision, above
from sim.expert.state import Goal, SimulatorState

_BASKET_HALF_LENGTH = 0.055  # along world x, at the bottom
TABLE = 0.9  # height of the table top
CABINET_TOP = 1.127
_ON_CABINET = "wooden_cabinet_1_top_side"
_IN_DRAWER = "wooden_cabinet_1_top_region"
_ON_STOVE = "flat_stove_1_cook_region"
_ON_RACK = "wine_rack_1_top_region"
_BOWL_APPROACH = Approach(hover=0.07, safe_height=1.06, empty_gap=0.0006, lean=True)


class Skill(Protocol):
    """From the simulator's state to a decision, with no memory between calls that the decision depends on."""

    def __call__(self, state: SimulatorState) -> Decision: ...


def skill_for(state: SimulatorState) -> Skill:
    """The skill for the scene's task; ValueError for a task that no recipe covers."""
    goals = state.goals
    return _skill(state, goals[0]) if len(goals) == 1 else Sequence([_stage(state, goal) for goal in _in_order(goals)])


def _in_order(goals: tuple[Goal, ...]) -> list[Goal]:
    """The task's goals as they are served: stoves are turned on first, and doors closed when all is inside."""
    return sorted(goals, key=lambda goal: {"turnon": 0, "close": 2}.get(goal[0], 1))


def _stage(state: SimulatorState, goal: Goal) -> Stage:
    """The skill for one of several goals; ValueError for a goal that no recipe covers."""
    match goal:
        case ("turnon", _):
            return Knob(state, goal)
        case ("in", _, "basket_1_contain_region"):
            return _into_basket(state, goal)
        case ("on", name, plate) if name in MUG_RIMS and plate.startswith("plate_"):
            return _mug_onto_plate(state, goal)
        case ("on", "chocolate_pudding_1", "living_room_table_plate_right_region"):
            return _pudding_beside_plate(state, goal)
        case ("on", name, region) if region == _ON_STOVE and name.startswith("moka_pot_"):
            return _pot_onto_stove(state, goal)
        case ("in", "black_book_1", region) if region.startswith("desk_caddy_1_"):
            return book_into_caddy(state, goal, "desk_caddy_1")
        case ("in", name, "white_cabinet_1_bottom_region") if _is_bowl(name):
            return bowl_into_open_drawer(state, goal)
        case ("close", "white_cabinet_1_bottom_region"):
            return PushDrawerShut(goal)
        case ("in", "white_yellow_mug_1", "microwave_1_heating_region"):
            return mug_into_microwave(state, goal)
        case ("close", "microwave_1"):
            return SwingDoorShut(goal)
    raise _no_recipe(goal)


def _skill(state: SimulatorState, goal: Goal) -> Skill:
    """The skill for the only goal of a task; ValueError for a goal that no recipe covers."""
    match goal:
        case ("open", region) if region.startswith("wooden_cabinet_1_"):
            return Drawer(state, region.split("_")[-2], lift=0.003)
        case ("in", name, region) if region == _IN_DRAWER and _is_bowl(name):
            return BowlIntoDrawer(state, goal)
        case ("on", "plate_1", "main_table_stove_front_region"):
            return SlidePlate(state, goal)
        case ("on", name, _) if _is_bowl(name):
            return _bowl_onto(state, goal)
        case ("on", "wine_bottle_1", _):
            return _bottle_onto(state, goal)
        case ("on", "cream_cheese_1", target) if _is_bowl(target):
            return _cheese_into_bowl(state, goal)
    return _stage(state, goal)


def _is_bowl(name: str) -> bool:
    return name.startswith("akita_black_bowl_")


def _no_recipe(goal: Goal) -> ValueError:
    covered = "libero_object, libero_spatial, libero_goal and libero_10"
    return ValueError(f"no recipe for the goal ({' '.join(goal)}); the expert covers the tasks of {covered}")


def _into_basket(state: SimulatorState, goal: Goal) -> PickAndPlace:
    _, name, basket = goal
    low, high = state.bounds(name)
    support = low[2]
    # Of several things the first goes to the basket's near end and the last to its far end, as far as they fit.
    things = [other[1] for other in state.goals]
    side = 0.0 if len(things) == 1 else 2.0 * things.index(name) / (len(things) - 1) - 1.0
    shift = side * max(0.0, _BASKET_HALF_LENGTH - (high[0] - low[0]) / 2)
    grasp = clear_top_grasp(state, name, depth=0.030, floor=support + 0.012)
    approach = Approach(hover=0.065, safe_height=support + 0.19)
    return PickAndPlace(state, goal, grasp, DropIntoBasket(name, basket, shift), approach)


def _mug_onto_plate(state: SimulatorState, goal: Goal) -> PickAndPlace:
    _, name, plate = goal

    def over_plate(now: SimulatorState) -> np.ndarray:
        return above(now.position(plate), 0.006)

    support = state.bounds(name)[0][2]
    middle = MUG_RIMS[name]
    # Opposite to the handle.
    handle = state.rotation(name) @ [-middle[0], 0.0, 0.0]
    direction = float(np.arctan2(-handle[1], -handle[0]))
    grasp = RimGrasp(name, direction=direction, radius=0.046, depth=0.02, middle=middle)
    placement = PlaceOn(name, over_plate, travel=support + 0.06)
    return PickAndPlace(
        state, goal, grasp, placement, Approach(hover=0.07, safe_height=support + 0.20, empty_gap=0.0006)
    )


def _pudding_beside_plate(state: SimulatorState, goal: Goal) -> PickAndPlace:
    _, name, region = goal
    x, y, _ = state.position(region)
    support = state.bounds(name)[0][2]
    beside = np.array([x, y + 0.025, support + 0.002])  # off the plate, wherever in its region that stands
    grasp = TopGrasp(name, depth=0.03, floor=support + 0.012)
    placement = PlaceOn(name, lambda now: beside, travel=support + 0.08)
    return PickAndPlace(state, goal, grasp, placement, Approach(hover=0.065, safe_height=support + 0.19))


def _pot_onto_stove(state: SimulatorState, goal: Goal) -> PickAndPlace:
    _, name, region = goal
    x, y, _ = state.position(region)
    pots = [other[1] for other in state.goals if other[-1] == region]
    # Two pots stand side by side, the first nearer to the robot.
    side = 0.0 if len(pots) == 1 else 0.044 * (2 * pots.index(name) - 1)
    over_stove = np.array([x + side, y, TABLE + 0.028])
    placement = PlaceOn(name, lambda now: over_stove, travel=TABLE + 0.06)
    return PickAndPlace(state, goal, LidGrasp(name), placement, Approach(hover=0.06, safe_height=1.13))


def _bowl_onto(state: SimulatorState, goal: Goal) -> Skill:
    _, name, target = goal
    if target == "plate_1":
        return _bowl_onto_plate(state, goal)
    grasp = RimGrasp(name)
    if target == _ON_STOVE:
        over_stove = np.array([*state.position(target)[:2], TABLE + 0.03])
        placement = PlaceOn(name, lambda now: over_stove, travel=TABLE + 0.07)
    elif target == _ON_CABINET:
        x, y, _ = state.position(target)
        over_cabinet = np.array([x, y + 0.02, CABINET_TOP + 0.001])  # not so far that the arm locks straight
        placement = PlaceOn(name, lambda now: over_cabinet, CABINET_TOP + 0.03, far=0.10, blend=0.05)
    else:
        raise _no_recipe(goal)
    return PickAndPlace(state, goal, grasp, placement, _BOWL_APPROACH)


def _bowl_onto_plate(state: SimulatorState, goal: Goal) -> Skill:
    _, name, plate = goal

    def over_plate(now: SimulatorState) -> np.ndarray:
        return above(now.position(plate), 0.003)

    travel = max(TABLE, state.bounds(name)[0][2]) + 0.065  # clear of a stove or ramekin that the bowl stands on
    start = state.start_of(name)
    if start == _IN_DRAWER:
        # Turned and further in, so that the outer finger misses the drawer's wall.
        grasp = RimGrasp(name, direction=2.2, radius=0.034, depth=0.012)
        slide = SlideOutOfDrawer(state, name, grasp)
        placement = PlaceOn(name, over_plate, TABLE + 0.065, blend=0.03, high_start=(0.12, 0.20, 1.14), detour=slide)
        approach = Approach(hover=0.07, safe_height=1.22, empty_gap=0.0006, lean=True)
    elif start == _ON_CABINET:
        grasp = RimGrasp(name)
        placement = PlaceOn(name, over_plate, TABLE + 0.065, high_start=(0.25, 0.33, 1.15))
        approach = Approach(hover=0.07, safe_height=1.24, empty_gap=0.0006, lean=True)
    else:
        grasp = RimGrasp(name)
        placement = PlaceOn(name, over_plate, travel)
        approach = _BOWL_APPROACH
    return PickAndPlace(state, goal, grasp, placement, approach)


def _bottle_onto(state: SimulatorState, goal: Goal) -> Skill:
    _, name, target = goal
    grasp = TopGrasp(name, depth=0.027, floor=TABLE + 0.012)  # at the neck
    x, y, _ = state.position(target)
    if target == _ON_CABINET:
        standing = np.array([x, y + 0.03, CABINET_TOP + 0.001])
        placement = PlaceOn(name, lambda now: standing, CABINET_TOP + 0.03, far=0.10, blend=0.05)
    elif target == _ON_RACK:
        # Upright onto the rack's near end: the goal holds as soon as the bottle touches.
        leaning = np.array([x, y - 0.02, 1.145])
        placement = PlaceOn(name, lambda now: leaning, travel=1.18, near=0.02, far=0.06, blend=0.04)
    else:
        raise _no_recipe(goal)
    return PickAndPlace(state, goal, grasp, placement, Approach(hover=0.06, safe_height=1.09, open_gap=0.05))


def _cheese_into_bowl(state: SimulatorState, goal: Goal) -> Skill:
    _, name, bowl = goal

    def into_bowl(now: SimulatorState) -> np.ndarray:
        return above(now.position(bowl), 0.015)

    grasp = TopGrasp(name, depth=0.03, floor=TABLE + 0.012)
    placement = PlaceOn(name, into_bowl, travel=TABLE + 0.085, release_margin=0.01)
    return PickAndPlace(state, goal, grasp, placement, Approach(hover=0.06, safe_height=1.0))
