"""Leaves out what a camera cannot see: the same pictures, to the last bit, of far fewer triangles.

A server GPU has few units that draw, and triangles are what limits LIBERO's pictures there; a software renderer gains
a little. Of a mesh that is fixed to the world or lies still, triangles that face away or lie outside the view are not
drawn; of the others, whole geoms outside the view. A stove's top mirrors the scene, so what its mirror image shows
stays, too.
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
# A loose thing lies still once it has kept within so many metres and radians of one place for so many pictures: what is
# left out of it then cannot be seen from anywhere in these bounds, and giving all of it back takes a few milliseconds.
_SHIFT, _TILT, _STAYED = 1e-3, 5e-3, 6
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

    def outside(self, points: np.ndarray, shift: float = 0.0) -> np.ndarray:
        """Whether all points of a set lie beyond the same bound, `[..., N, 3]` to bool `[...]`, wherever each of them
        may have gone by up to `shift` metres.
        """
        return np.logical_or.reduce(np.logical_and.reduce(self.beyond(points, shift), axis=-2), axis=-1)

    def beyond(self, points: np.ndarray, shift: float = 0.0) -> np.ndarray:
        """Whether points `[..., 3]` lie beyond each of the bounds even so, bool `[..., P]`."""
        bounds: np.ndarray = self.offsets + shift * np.linalg.norm(self.normals, axis=1)
        return np.greater(points @ self.normals.T, bounds)

    def turned_away(self, corners: np.ndarray, facing: np.ndarray, shift: float = 0.0, tilt: float = 0.0) -> np.ndarray:
        """Whether triangles show their back, also once they have gone by up to `shift` metres and turned by `tilt`
        radians: bool `[N]`. corners: one of each, `[N, 3]`. facing: unit normals on their front, `[N, 3]`.
        """
        ways = self.eye - corners
        distances = np.sqrt(np.einsum("ij,ij->i", ways, ways))
        least = _TURNED + tilt + shift / np.maximum(distances, _NEAREST)  # angles, which cosines change less than
        return np.einsum("ij,ij->i", facing, ways) < -least * distances

    def among(self, position: np.ndarray, rotation: np.ndarray) -> _View:
        """The same in the frame of what is at `position` `[3]`, turned by `rotation` `[3, 3]`."""
        return _View((self.eye - position) @ rotation, self.normals @ rotation, self.offsets - self.normals @ position)


class _Mesh:
    """A mesh in its own frame, and which of its triangles a view shows.

    faces, normals, texture: numbers of their vertices, normals and texture coordinates, `[N, 3]` each.
    """

    def __init__(self, model: mujoco.MjModel, geom: int) -> None:
        mesh = model.geom_dataid[geom]
        every = _span(model.mesh_faceadr[mesh], model.mesh_facenum[mesh])
        self.faces = model.mesh_face[every].copy()
        self.normals, self.texture = model.mesh_facenormal[every].copy(), model.mesh_facetexcoord[every].copy()
        self._vertices = model.mesh_vert[_span(model.mesh_vertadr[mesh], model.mesh_vertnum[mesh])].astype(np.float64)
        self._reach = float(np.linalg.norm(self._vertices, axis=1).max())
        self._corners = self._vertices[self.faces[:, 0]]
        self._facing = facing_of(self._vertices[self.faces])

    def shown(self, views: list[_View], shift: float = 0.0, tilt: float = 0.0) -> np.ndarray:
        """The numbers of the triangles that may be seen in views of the mesh's frame while its origin goes by up to
        `shift` metres and it turns by up to `tilt` radians.
        """
        farthest = shift + tilt * self._reach  # that any vertex goes
        unseen = [
            view.turned_away(self._corners, self._facing, farthest, tilt) | self._outside(view, farthest)
            for view in views
        ]
        return np.flatnonzero(~np.logical_and.reduce(unseen))

    def _outside(self, view: _View, shift: float) -> np.ndarray:
        """Whether triangles lie outside a view as a whole, bool `[N]`."""
        beyond = view.beyond(self._vertices, shift)  # [vertices, P]
        crossed = np.flatnonzero(beyond.any(axis=0))
        return beyond[:, crossed][self.faces].all(axis=1).any(axis=1)


def _span(begin: int, count: int) -> slice:
    return slice(begin, begin + count)


def facing_of(triangles: np.ndarray) -> np.ndarray:
    """Unit normals `[N, 3]` of triangles `[N, 3, 3]` with corners counterclockwise from their front; zeros for none."""
    first = triangles[:, 0]
    normals = np.cross(triangles[:, 1] - first, triangles[:, 2] - first)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0.0)


class HiddenGeometry:
    """What one camera of a model does not see. Changes the model's visual meshes and groups, which physics do not read.

    camera: its number. shown: the group of what is drawn. context: has the model's meshes.
    """

    def __init__(self, model: mujoco.MjModel, camera: int, shown: int, context: mujoco.MjrContext) -> None:
        self._camera, self._shown, self._context = camera, shown, context
        drawn = model.geom_group == shown
        meshes = np.flatnonzero(drawn & (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH))
        users = np.bincount(model.geom_dataid[meshes], minlength=model.nmesh)
        own = meshes[users[model.geom_dataid[meshes]] == 1]
        carriers = model.body_weldid[model.geom_bodyid]
        self._fixed = own[carriers[own] == 0]
        self._loose = own[np.isin(carriers[own], model.jnt_bodyid[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE])]
        self._others = np.setdiff1d(meshes, self._fixed)
        self._mirrors = np.flatnonzero(
            drawn & np.isin(model.geom_type, _MIRRORING) & (_reflectances(model) > 0.0)
        )  # MuJoCo mirrors in planes and in the upper faces of boxes
        boxes = model.geom_aabb[self._others]
        self._boxes = boxes[:, None, :3] + _CORNERS * boxes[:, None, 3:]  # [others, 8, 3]
        self._meshes = {int(geom): _Mesh(model, geom) for geom in (*self._fixed, *self._loose)}
        self._seen_from = self._placed = np.empty(0)
        self._views: list[_View] = []  # with the camera and the mirrors where `_seen_from` has them
        count = len(self._loose)
        self._anchors = np.full((count, 12), np.inf)  # of loose things, where they were when they last moved
        self._stayed = np.full(count, _STAYED)  # pictures since then
        self._lean = np.ones(count, bool)  # whether anything of them is left out

    def leave_out(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Before a picture of the model in these positions."""
        seen_from = np.append(data.cam_xpos[self._camera], data.cam_xmat[self._camera])
        seen_from = np.append(seen_from, _poses(data, self._mirrors))
        other_views = not np.array_equal(seen_from, self._seen_from)
        if other_views:
            self._seen_from, self._views = seen_from, self._views_from(model, data)
        views = self._views
        placed = _poses(data, self._fixed)
        if other_views or not np.array_equal(placed, self._placed):
            self._placed = placed
            for geom in self._fixed:
                self._leave_out_of(model, data, int(geom), views)
        self._follow_loose(model, data, views, other_views)
        rotations = data.geom_xmat[self._others].reshape(-1, 3, 3)
        corners = self._boxes @ rotations.transpose(0, 2, 1) + data.geom_xpos[self._others, None]
        unseen = np.logical_and.reduce([view.outside(corners) for view in views])
        model.geom_group[self._others] = np.where(unseen, _NOWHERE, self._shown)

    def _follow_loose(self, model: mujoco.MjModel, data: mujoco.MjData, views: list[_View], other_views: bool) -> None:
        """All of what moves, and what can be seen of what lies still."""
        poses = _poses(data, self._loose)
        ways = poses - self._anchors
        turned = np.linalg.norm(ways[:, 3:], axis=1)  # of a rotation by a small angle, sqrt(2) times the angle
        moved = (np.linalg.norm(ways[:, :3], axis=1) > _SHIFT) | (turned > np.sqrt(2.0) * _TILT) | other_views
        rested = self._stayed >= _STAYED
        self._anchors[moved] = poses[moved]
        self._stayed = np.where(moved, 0, self._stayed + 1)
        # What moves after a rest may have been put elsewhere, as at a reset; what moves on is on its way.
        for index in np.flatnonzero(moved & self._lean & ~rested):
            geom = int(self._loose[index])
            self._keep(model, geom, np.arange(len(self._meshes[geom].faces)))
            self._lean[index] = False
        for index in np.flatnonzero((moved & self._lean & rested) | (~self._lean & (self._stayed >= _STAYED))):
            # It may yet go to either side of where it is now, as far as it may be from its anchor.
            self._leave_out_of(model, data, int(self._loose[index]), views, 2.0 * _SHIFT, 2.0 * _TILT)
            self._lean[index] = True

    def _views_from(self, model: mujoco.MjModel, data: mujoco.MjData) -> list[_View]:
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

    def _leave_out_of(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        geom: int,
        views: list[_View],
        shift: float = 0.0,
        tilt: float = 0.0,
    ) -> None:
        """What `_Mesh.shown` does not name."""
        position, rotation = data.geom_xpos[geom], data.geom_xmat[geom].reshape(3, 3)
        own = [view.among(position, rotation) for view in views]
        self._keep(model, geom, self._meshes[geom].shown(own, shift, tilt))

    def _keep(self, model: mujoco.MjModel, geom: int, kept: np.ndarray) -> None:
        """Draw these triangles of a geom and no others."""
        mesh = int(model.geom_dataid[geom])
        whole = self._meshes[geom]
        stay = _span(model.mesh_faceadr[mesh], len(kept))
        model.mesh_face[stay] = whole.faces[kept]
        model.mesh_facenormal[stay] = whole.normals[kept]
        model.mesh_facetexcoord[stay] = whole.texture[kept]
        model.mesh_facenum[mesh] = len(kept)
        mujoco.mjr_uploadMesh(model, self._context, mesh)


def _poses(data: mujoco.MjData, geoms: np.ndarray) -> np.ndarray:
    """Positions and rotation matrices of geoms in the world, `[geoms, 12]`."""
    return np.hstack([data.geom_xpos[geoms], data.geom_xmat[geoms]])


def _window(x: float, y: float) -> np.ndarray:
    """Corners `[4, 3]` in order of a rectangle about the origin, a little larger than ± x by ± y."""
    return np.array([[-x, -y, 0.0], [x, -y, 0.0], [x, y, 0.0], [-x, y, 0.0]]) * (1.0 + _OUTSIDE)


def _reflectances(model: mujoco.MjModel) -> np.ndarray:
    """Of every geom, `[geoms]`; 0 without a material."""
    return np.where(model.geom_matid >= 0, np.append(model.mat_reflectance, 0.0)[model.geom_matid], 0.0)
