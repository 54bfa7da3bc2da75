"""What is left out of pictures changes none of their bits."""

import mujoco
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sim.hidden_geometry import _View, facing_of
from sim.libero import LiberoEnv

WINDOW = np.array([[-1.0, -1, -1], [1, -1, -1], [1, 1, -1], [-1, 1, -1]])


def drawn_triangles(model: mujoco.MjModel) -> int:
    meshes = model.geom_dataid[(model.geom_type == mujoco.mjtGeom.mjGEOM_MESH) & (model.geom_group == 1)]
    return int(model.mesh_facenum[meshes].sum())


class Everything:
    """Leaves nothing out."""

    def leave_out(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        pass


@pytest.mark.libero
@pytest.mark.parametrize(("suite", "task", "kept"), [("libero_goal", 5, 0.8), ("libero_10", 5, 0.6)], ids=str)
def test_pictures_are_the_same_of_fewer_triangles(suite, task, kept):
    """With a stove, whose top mirrors, and without; fixtures move with every reset, the arm with every step."""
    lean, full = LiberoEnv(suite, task), LiberoEnv(suite, task)
    full._camera._hidden = Everything()
    try:
        random = np.random.default_rng(0)
        for seed in (5001, 5002):
            for env in (lean, full):
                env.reset(seed=seed)
            for _ in range(2):
                action = random.uniform(-1.0, 1.0, 7)
                seen, want = (env.step(action)[0]["image"] for env in (lean, full))
                np.testing.assert_array_equal(seen, want)
                fewer, every = (drawn_triangles(env.simulator.sim.model._model) for env in (lean, full))
                assert 0.2 * every < fewer < kept * every
    finally:
        lean.close()
        full.close()


@pytest.mark.libero
def test_things_that_lie_still_show_their_front_only_until_they_are_moved():
    """The bowls, a plate and boxes of cookies; one bowl is lifted, turned and put elsewhere."""
    lean, full = LiberoEnv("libero_spatial", 0), LiberoEnv("libero_spatial", 0)
    full._camera._hidden = Everything()
    shares = []
    try:
        for env in (lean, full):
            env.reset(seed=5003)
        for step in range(26):
            if step in (12, 13, 14, 20):
                for env in (lean, full):
                    _lift(env.simulator.sim.model._model, env.simulator.sim.data._data, "akita_black_bowl_1_joint0")
            seen, want = (env.step(np.zeros(7))[0]["image"] for env in (lean, full))
            np.testing.assert_array_equal(seen, want, err_msg=f"step {step}")
            fewer, every = (drawn_triangles(env.simulator.sim.model._model) for env in (lean, full))
            shares.append(fewer / every)
    finally:
        lean.close()
        full.close()
    assert max(shares[:12]) < 0.75, "what lies still is left out in part"
    assert shares[14] > shares[11] + 0.03, "all of what moves is drawn"
    assert shares[-1] < 0.75, "until it lies still again"


def _lift(model: mujoco.MjModel, data: mujoco.MjData, joint: str) -> None:
    at = model.joint(joint).qposadr[0]
    data.qpos[at : at + 3] += [0.02, -0.03, 0.04]
    data.qpos[at + 3 : at + 7] = [np.cos(0.4), 0.0, np.sin(0.4), 0.0]


def test_a_view_has_four_edges_and_begins_at_its_window():
    view = _View.through(np.zeros(3), WINDOW)
    points = np.array([[0.0, 0, -2], [1.9, 0, -2], [2.1, 0, -2], [0, -2.1, -2], [0, 0, 2], [0, 0, -0.5]])
    assert view.outside(points[:, None]).tolist() == [False, False, True, True, True, True]
    assert not view.outside(np.array([[3.0, 0, -2], [-3.0, 0, -2]])), "beyond two edges, but between them"


def test_windows_may_go_round_either_way():
    for corners in (WINDOW, WINDOW[::-1]):
        assert not _View.through(np.zeros(3), corners).outside(np.array([[0.0, 0, -5]]))


def test_backs_are_turned_away():
    view = _View.through(np.zeros(3), WINDOW)
    facing = np.array([[0.0, 0, -3], [1, 0, -3], [0, 1, -3]])
    edge = np.array([[0.0, 0, -3], [0, 0, -4], [0, 1, -3]])
    none = np.zeros((3, 3))
    triangles = np.stack([facing, facing[::-1], edge, none])
    assert view.turned_away(triangles[:, 0], facing_of(triangles)).tolist() == [False, True, False, False]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_left_out_of_a_thing_cannot_be_seen_from_near_its_place_either(seed):
    random = np.random.default_rng(seed)
    view = _View.through(np.zeros(3), WINDOW)
    triangles = random.normal([0.0, 0.0, -4.0], [2.5, 2.5, 0.5], (400, 1, 3)) + random.normal(0.0, 0.3, (400, 3, 3))
    shift, tilt = 0.03, 0.05
    middle = triangles.mean(axis=1, keepdims=True)
    reach = shift + tilt * np.linalg.norm(triangles - middle, axis=2).max()
    hidden = view.turned_away(triangles[:, 0], facing_of(triangles), reach, tilt) | view.outside(triangles, reach)
    assert 50 < hidden.sum() < 390
    for _ in range(20):
        axis, way = (vector / np.linalg.norm(vector) for vector in random.normal(size=(2, 3)))
        turn = Rotation.from_rotvec(tilt * axis).as_matrix()
        moved = (triangles - middle) @ turn.T + middle + shift * way
        assert (view.turned_away(moved[:, 0], facing_of(moved)) | view.outside(moved))[hidden].all()


def test_a_view_may_be_had_in_the_frame_of_a_thing():
    random = np.random.default_rng(0)
    view, points = _View.through(np.zeros(3), WINDOW), random.normal([0.0, 0.0, -4.0], 3.0, (500, 3))
    position, rotation = random.normal(size=3), Rotation.random(rng=0).as_matrix()
    own = view.among(position, rotation)
    np.testing.assert_array_equal(own.beyond((points - position) @ rotation), view.beyond(points))
    np.testing.assert_allclose(own.eye @ rotation.T + position, view.eye, atol=1e-12)
