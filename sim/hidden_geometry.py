"""Leaves out what a camera cannot see: the same pictures, to the last bit, of 14 to 60% fewer triangles.

A server GPU has few units that draw, and triangles are what limits LIBERO's pictures there; a software renderer gains
a little. Of a mesh that is fixed to the world, triangles that face away or lie outside the view are never drawn; of
the others, whole geoms outside the view. A stove's top mirrors the scene, so what its mirror image shows stays, too.
Knows MuJoCo's visual meshes and its camera; nothing of robots and tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

# A group that no camera of ours shows (`sim.camera`).
_NOWHERE = 5
# How far a triangle must be turned away, as a cosine, and how far outside the view things must be, as a share of it:
# rasterisers place vertices on a fixed grid.
_TURNED, _OUTSIDE = 1e-3, 0.01
# Metres: how near to a camera things begin to be seen, and half the side of a plane that has no end.
_NEAREST, _FAR = 1e-3, 100.0
_MIRRORING = (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX)
_CORNERS = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])


@dataclass(frozen=True, slots=True)
class _View:
    """What is seen from a point.

    eye: `[3]`, world. normals, offsets: `[P, 3]` and `[P]`, the view's bounds: a point x is beyond one of them where
    normal · x > offset.
    """

    eye: np.ndarray
    normals: np.ndarray
    offsets: np.ndarray

    @classmethod
    def through(cls, eye: np.ndarray, corners: np.ndarray) -> _View:
        """From the eye through a window with corners `[4, 3]` in order; nothing on this side of it counts."""
        ways = corners - eye
        sides = np.cross(ways, np.roll(ways, -1, axis=0))
        sides *= -np.sign(sides @ ways.mean(axis=0))[:, None]
        front = np.cross(corners[1] - corners[0], corners[2] - corners[0])
        front *= -np.sign(front @ ways[0])
        return cls(eye, np.vstack([sides, front]), np.append(sides @ eye, front @ corners[0]))

    def outside(self, points: np.ndarray) -> np.ndarray:
        """Whether all points of a set lie beyond the same bound, `[..., N, 3]` to bool `[...]`."""
        return (points @ self.normals.T > self.offsets).all(axis=-2).any(axis=-1)

    def turned_away(self, triangles: np.ndarray) -> np.ndarray:
        """Whether triangles `[N, 3, 3]`, corners counterclockwise from their front, show their back: bool `[N]`."""
        first = triangles[:, 0]
        normals = np.cross(triangles[:, 1] - first, triangles[:, 2] - first)
        ways = self.eye - first
        lengths = np.linalg.norm(normals, axis=1) * np.linalg.norm(ways, axis=1)
        return np.einsum("ij,ij->i", normals, ways) < -_TURNED * lengths


class HiddenGeometry:
    """What one camera of a model does not see. Changes the model's visual meshes and groups, which physics do not read.

    camera: its number. shown: the group of what is drawn. context: has the model's meshes.
    """

    def __init__(self, model: mujoco.MjModel, camera: int, shown: int, context: mujoco.MjrContext) -> None:
        self._camera, self._shown, self._context = camera, shown, context
        drawn = model.geom_group == shown
        meshes = np.flatnonzero(drawn & (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH))
        users = np.bincount(model.geom_dataid[meshes], minlength=model.nmesh)
        fixed = model.body_weldid[model.geom_bodyid] == 0
        self._fixed = np.array([geom for geom in meshes if fixed[geom] and users[model.geom_dataid[geom]] == 1], int)
        self._others = np.setdiff1d(meshes, self._fixed)
        self._mirrors = np.flatnonzero(
            drawn & np.isin(model.geom_type, _MIRRORING) & (_reflectances(model) > 0.0)
        )  # MuJoCo mirrors in planes and in the upper faces of boxes
        boxes = model.geom_aabb[self._others]
        self._boxes = boxes[:, None, :3] + _CORNERS * boxes[:, None, 3:]  # [others, 8, 3]
        self._whole = {int(geom): _triangles(model, geom) for geom in self._fixed}
        self._seen_from: np.ndarray | None = None

    def leave_out(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Before a picture of the model in these positions."""
        views = self._views(model, data)
        placed = np.concatenate(
            [data.geom_xpos[self._fixed].ravel(), data.geom_xmat[self._fixed].ravel()]
            + [view.normals.ravel() for view in views]
        )
        if self._seen_from is None or not np.array_equal(placed, self._seen_from):
            self._seen_from = placed
            for geom in self._fixed:
                self._leave_out_triangles(model, data, int(geom), views)
        rotations = data.geom_xmat[self._others].reshape(-1, 3, 3)
        corners = self._boxes @ rotations.transpose(0, 2, 1) + data.geom_xpos[self._others, None]
        unseen = np.logical_and.reduce([view.outside(corners) for view in views])
        model.geom_group[self._others] = np.where(unseen, _NOWHERE, self._shown)

    def _views(self, model: mujoco.MjModel, data: mujoco.MjData) -> list[_View]:
        """The camera's, and those of its mirror images through the mirrors."""
        eye, axes = data.cam_xpos[self._camera].copy(), data.cam_xmat[self._camera].reshape(3, 3)
        half = np.tan(np.radians(model.cam_fovy[self._camera]) / 2.0)
        views = [_View.through(eye, eye + (_window(half, half) - [0.0, 0.0, 1.0]) * _NEAREST @ axes.T)]
        for mirror in self._mirrors:
            axes, (x, y, z) = data.geom_xmat[mirror].reshape(3, 3), model.geom_size[mirror]
            normal = axes[:, 2]
            box = model.geom_type[mirror] == mujoco.mjtGeom.mjGEOM_BOX
            face = data.geom_xpos[mirror] + (z if box else 0.0) * normal
            image = eye + 2.0 * normal * ((face - eye) @ normal)
            views.append(_View.through(image, face + _window(x or _FAR, y or _FAR) @ axes.T))
        return views

    def _leave_out_triangles(self, model: mujoco.MjModel, data: mujoco.MjData, geom: int, views: list[_View]) -> None:
        mesh = int(model.geom_dataid[geom])
        faces, normals, texture = self._whole[geom]
        first = model.mesh_vertadr[mesh]
        vertices = model.mesh_vert[first : first + model.mesh_vertnum[mesh]].astype(np.float64)
        triangles = (vertices @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])[faces]
        unseen = np.logical_and.reduce([view.turned_away(triangles) | view.outside(triangles) for view in views])
        kept = np.flatnonzero(~unseen)
        stay = slice(model.mesh_faceadr[mesh], model.mesh_faceadr[mesh] + len(kept))
        model.mesh_face[stay], model.mesh_facenormal[stay], model.mesh_facetexcoord[stay] = (
            faces[kept],
            normals[kept],
            texture[kept],
        )
        model.mesh_facenum[mesh] = len(kept)
        mujoco.mjr_uploadMesh(model, self._context, mesh)


def _window(x: float, y: float) -> np.ndarray:
    """Corners `[4, 3]` in order of a rectangle about the origin, a little larger than ± x by ± y."""
    return np.array([[-x, -y, 0.0], [x, -y, 0.0], [x, y, 0.0], [-x, y, 0.0]]) * (1.0 + _OUTSIDE)


def _reflectances(model: mujoco.MjModel) -> np.ndarray:
    """Of every geom, `[geoms]`; 0 without a material."""
    return np.where(model.geom_matid >= 0, np.append(model.mat_reflectance, 0.0)[model.geom_matid], 0.0)


def _triangles(model: mujoco.MjModel, geom: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, normals and texture coordinates of a mesh's triangles, `[N, 3]` each."""
    mesh = model.geom_dataid[geom]
    every = slice(model.mesh_faceadr[mesh], model.mesh_faceadr[mesh] + model.mesh_facenum[mesh])
    return model.mesh_face[every].copy(), model.mesh_facenormal[every].copy(), model.mesh_facetexcoord[every].copy()
