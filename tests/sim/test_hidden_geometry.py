"""What is left out of pictures changes none of their bits."""

import mujoco
import numpy as np
import pytest

from sim.hidden_geometry import _View
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
    assert view.turned_away(np.stack([facing, facing[::-1], edge, none])).tolist() == [False, True, False, False]
