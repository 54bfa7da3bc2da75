"""The expert's skills for the book, the bottom drawer and the microwave: what they decide where, and whole tasks."""

from types import SimpleNamespace

import numpy as np
import pytest

from sim.expert import make_expert
from sim.expert.book import BookGrasp, IntoCompartment
from sim.expert.bottom_drawer import PushDrawerShut
from sim.expert.microwave import SwingDoorShut
from sim.expert.rotations import HAND_DOWN, about_x, about_z
from sim.expert.servo import CLOSE, OPEN
from sim.libero import LiberoEnv

CADDY, COMPARTMENT = np.array([-0.4, -0.13, 0.89]), np.array([-0.44, -0.13, 0.97])


def book_at(x: float, y: float, foot: float, thin: float) -> SimpleNamespace:
    """A state with an upright book in the hand: its middle, the height of its foot and the angle of its thin side."""
    low, high = np.array([x - 0.05, y - 0.05, foot]), np.array([x + 0.05, y + 0.05, foot + 0.13])
    places = {"caddy": CADDY, "back": COMPARTMENT}
    return SimpleNamespace(
        bounds=lambda _: (low, high),
        rotation=lambda _: about_z(thin),
        position=places.__getitem__,
        hand_position=np.array([x, y, foot + 0.10]),
    )


def test_a_book_on_the_table_is_taken_across_and_turned_into_the_compartment_once_it_is_lifted():
    grasp = BookGrasp("book", foot=0.885)
    thin = np.deg2rad(70)
    fingers = grasp(book_at(-0.2, 0.15, 0.885, thin)).rotation[:, 0]
    np.testing.assert_allclose(np.abs(fingers), [np.cos(thin), np.sin(thin), 0.0], atol=1e-9)
    np.testing.assert_allclose(np.abs(grasp(book_at(-0.2, 0.15, 1.0, thin)).rotation[:, 0]), [1.0, 0.0, 0.0], atol=1e-9)


@pytest.mark.parametrize(("degrees", "lowered"), [(0, True), (175, True), (40, False), (140, False)])
def test_a_book_is_lowered_only_as_it_fits(degrees, lowered):
    placement = IntoCompartment("book", "caddy", "back")(book_at(*COMPARTMENT[:2], 1.08, np.deg2rad(degrees)))
    assert (placement.release_height < placement.travel_height - 0.05) == lowered
    assert (placement.release_radius > 0) == lowered


BAR = np.array([0.0, 0.06, 0.946])
BEFORE_BAR = about_x(np.deg2rad(25)) @ about_z(-np.pi / 2) @ HAND_DOWN


def drawer(hand, rotation=BEFORE_BAR) -> SimpleNamespace:
    """A state with the bottom drawer 14 cm open and the hand at the given pose."""
    places = {"white_cabinet_1": np.array([0.0, 0.3, 0.905]), "white_cabinet_1_g40": BAR}
    return SimpleNamespace(
        position=places.__getitem__,
        joint=lambda _: -0.14,
        hand_position=np.array(hand, float),
        hand_rotation=rotation,
    )


@pytest.mark.parametrize(
    ("hand", "phase", "sign"),
    [
        ((0.0, 0.15, 0.97), "go round", (0, 0, 1)),  # between the walls: up before anything else
        ((0.0, 0.15, 1.04), "go round", (0, -1, 0)),  # above the walls: out over the front
        ((0.0, -0.02, 1.00), "go round", (0, 0, -1)),  # before the bar: down
        ((0.0, -0.02, 0.946), "push", (0, 1, 0)),
    ],
)
def test_the_hand_goes_out_over_the_drawers_front_and_pushes_its_bar(hand, phase, sign):
    decision = PushDrawerShut(("close", "drawer"))(drawer(hand))
    assert decision.phase == phase
    assert decision.action[6] == OPEN
    for value, expected in zip(decision.action[:3], sign, strict=True):
        assert value * expected > 0.3 if expected else abs(value) < 0.3


def test_the_drawer_is_not_pushed_before_the_hand_is_turned():
    assert PushDrawerShut(("close", "drawer"))(drawer((0.0, -0.02, 0.946), HAND_DOWN)).action[2] > 0.3


def door(hand, angle: float) -> SimpleNamespace:
    """A state with the microwave's door at `angle` and the hand, turned for pushing it, at the given position."""
    places = {"microwave_1": np.array([0.0, 0.36, 0.92]), "microwave_1_microdoorroot": np.array([-0.165, 0.27, 1.016])}
    return SimpleNamespace(
        position=places.__getitem__,
        joint=lambda _: angle,
        hand_position=np.array(hand, float),
        hand_rotation=about_z(np.deg2rad(80)) @ HAND_DOWN,
    )


@pytest.mark.parametrize(
    ("hand", "angle", "phase", "sign"),
    [
        ((0.0, 0.2, 1.02), -np.pi / 2, "go round", (0, 0, 1)),  # inside the door: up
        ((0.0, 0.1, 1.16), -np.pi / 2, "go round", (-1, 0, 0)),  # above it: across
        ((-0.25, 0.08, 1.17), -np.pi / 2, "go round", (0, 0, -1)),  # outside it: down
        ((-0.21, 0.08, 1.095), -np.pi / 2, "push", (1, 0, 0)),
        ((0.025, 0.23, 1.095), -0.05, "push", (0, 1, 0)),  # nearly shut: the way has turned with the door
    ],
)
def test_the_hand_goes_over_the_door_and_swings_it_round_its_hinge(hand, angle, phase, sign):
    decision = SwingDoorShut(("close", "microwave_1"))(door(hand, angle))
    assert decision.phase == phase
    assert decision.action[6] == CLOSE
    for value, expected in zip(decision.action[:3], sign, strict=True):
        assert value * expected > 0.3 if expected else abs(value) < 0.3


@pytest.mark.libero
@pytest.mark.parametrize(("task", "last"), [(3, "white_cabinet_1_g40: push"), (9, "microwave_1_g14: push")])
def test_it_puts_something_inside_and_shuts_it(task, last):
    env = LiberoEnv("libero_10", task, render=False)
    try:
        env.reset(seed=7)
        expert = make_expert(env)
        solved = late = False
        while not (solved or late):
            _, _, solved, late, info = env.step(expert.act())
        assert solved
        assert expert.phase == last
        assert info["steps"] < 300
    finally:
        env.close()
