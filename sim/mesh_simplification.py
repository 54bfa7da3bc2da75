"""Fewer triangles for faster pictures: scanned objects have tens of thousands, most of them smaller than a pixel.

A server GPU has few units that draw, and triangles are what limits LIBERO's pictures there. Vertices that share a cell
of a grid become one (Rossignac and Borrel, 1993); triangles that collapse go. Cells of 3 mm, about a pixel of a 256 by
256 picture of LIBERO's table, leave less than half of them. For training pictures: what is judged is drawn in full.
Knows MuJoCo's mesh arrays; physics read others (vertices and hulls), which stay as they are.
"""

from __future__ import annotations

import mujoco
import numpy as np

# Meshes of fewer triangles cost nothing, and may be boxes that must keep their corners.
_WORTHWHILE = 200


def simplify_meshes(model: mujoco.MjModel, cell: float) -> tuple[int, int]:
    """Simplify what is drawn of all meshes, in place, before a rendering context is made.

    cell: side of the grid's cells, metres. Returns the number of triangles before and after.
    """
    before = int(model.mesh_facenum.sum())
    for mesh in range(model.nmesh):
        count = model.mesh_facenum[mesh]
        if count >= _WORTHWHILE:
            model.mesh_facenum[mesh] = _simplify(model, mesh, cell)
    return before, int(model.mesh_facenum.sum())


def _simplify(model: mujoco.MjModel, mesh: int, cell: float) -> int:
    """Put the triangles that stay first; their number."""
    vertices = slice(model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh])
    first, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    every = slice(first, first + count)
    groups, leaders = _clusters(model.mesh_vert[vertices].astype(np.float64), cell)
    corners = groups[model.mesh_face[every]]
    distinct = (corners != np.roll(corners, 1, axis=1)).all(axis=1)
    # Several triangles between the same three vertices, whichever comes first: one is enough.
    _, kept = np.unique(np.sort(corners[distinct], axis=1), axis=0, return_index=True)
    kept = np.flatnonzero(distinct)[np.sort(kept)]
    stay = slice(first, first + len(kept))
    model.mesh_face[stay] = leaders[corners[kept]]
    for per_corner in (model.mesh_facenormal, model.mesh_facetexcoord):
        per_corner[stay] = per_corner[every][kept]
    return len(kept)


def _clusters(vertices: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """For vertices `[V, 3]`: the cluster of each, int64 `[V]`, and each cluster's vertex nearest to its mean."""
    cells = np.floor(vertices / cell).astype(np.int64)
    _, groups = np.unique(cells, axis=0, return_inverse=True)
    groups = groups.reshape(-1)
    sizes = np.bincount(groups)
    means = np.stack([np.bincount(groups, axis) for axis in vertices.T], axis=1) / sizes[:, None]
    distances = np.square(vertices - means[groups]).sum(axis=1)
    order = np.lexsort((distances, groups))
    return groups, order[np.cumsum(sizes) - sizes]
