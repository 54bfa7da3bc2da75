"""Simplified meshes have fewer triangles, in the same places, and weigh and collide as before."""

import mujoco
import numpy as np

from sim.mesh_simplification import simplify_meshes


def dome(side: int = 40) -> mujoco.MjModel:
    """A closed hill of a few thousand triangles, 20 cm wide, falling onto a floor."""
    grid = np.linspace(-0.1, 0.1, side)
    x, y = np.meshgrid(grid, grid)
    top = np.stack([x, y, 0.05 * np.cos(15 * x) * np.cos(15 * y)], axis=-1).reshape(-1, 3)
    low = np.concatenate([top, top * [1, 1, 0] - [0, 0, 0.05]])
    row, column = np.meshgrid(np.arange(side - 1), np.arange(side - 1))
    corner = (row * side + column).reshape(-1)
    upper = np.concatenate(
        [np.stack([corner, corner + 1, corner + side], 1), np.stack([corner + 1, corner + side + 1, corner + side], 1)]
    )
    faces = np.concatenate([upper, upper[:, ::-1] + side * side])
    texts = " ".join(map(str, low.reshape(-1))), " ".join(map(str, faces.reshape(-1)))
    return mujoco.MjModel.from_xml_string(f"""
        <mujoco><asset><mesh name="dome" vertex="{texts[0]}" face="{texts[1]}" inertia="shell"/></asset>
        <worldbody><geom type="plane" size="1 1 1"/><body pos="0 0 0.3" euler="20 10 0"><freejoint/>
        <geom type="mesh" mesh="dome"/></body></worldbody></mujoco>""")


def triangles(model: mujoco.MjModel) -> np.ndarray:
    return model.mesh_vert[model.mesh_face[: model.mesh_facenum[0]]]


def area(corners: np.ndarray) -> float:
    sides = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    return float(np.linalg.norm(np.cross(*sides), axis=1).sum() / 2)


def test_fewer_triangles_none_of_them_flat_in_the_same_place():
    model = dome()
    whole = triangles(model).copy()
    before, after = simplify_meshes(model, 0.012)
    left = triangles(model)
    assert before == len(whole)
    assert after == len(left)
    assert len(left) < len(whole) / 3
    assert 0 <= model.mesh_face[:after].min() <= model.mesh_face[:after].max() < model.mesh_vertnum[0]
    assert all(len(np.unique(corner, axis=0)) == 3 for corner in left)
    assert abs(area(left) / area(whole) - 1) < 0.1
    assert np.abs(left.min((0, 1)) - whole.min((0, 1))).max() < 0.012


def test_physics_do_not_notice():
    falls = []
    for cell in (0.0, 0.012):
        model = dome()
        if cell:
            simplify_meshes(model, cell)
        data = mujoco.MjData(model)
        mujoco.mj_step(model, data, 400)
        falls.append(data.qpos.copy())
    assert falls[0][2] < 0.2, "it must have hit the floor"
    assert np.array_equal(*falls)


def test_small_meshes_stay_as_they_are():
    model = dome(side=6)
    whole = triangles(model).copy()
    assert simplify_meshes(model, 0.05) == (len(whole), len(whole))
    assert np.array_equal(triangles(model), whole)
