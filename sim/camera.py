"""LIBERO's camera, built once per world.

Knows how robosuite draws a picture (`MjRenderContext` in its binding_utils) and gives the same ones. robosuite builds
its GL context, shaders and textures anew at every reset; here they outlive it, since a world's meshes and textures
never change. Does not know what is in the picture.
"""

from __future__ import annotations

import mujoco
import numpy as np

from sim.hidden_geometry import HiddenGeometry

# What robosuite allows and shows: up to 1000 geoms, visual ones (group 1) but no collision shapes (group 0).
_MOST_GEOMS = 1000
_COLLISION_GROUP, _VISUAL_GROUP = 0, 1


class Camera:
    """Takes pictures of one MuJoCo model through one of its cameras.

    name: of the camera in the model. side: of the square picture in pixels.
    """

    def __init__(self, model: mujoco.MjModel, name: str, side: int) -> None:
        from robosuite.utils.binding_utils import GLContext

        size = model.vis.global_
        size.offwidth, size.offheight = max(size.offwidth, side), max(size.offheight, side)
        self._gl = GLContext(max_width=size.offwidth, max_height=size.offheight, device_id=-1)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=_MOST_GEOMS)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[_COLLISION_GROUP], self._options.geomgroup[_VISUAL_GROUP] = 0, 1
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = model.camera(name).id
        self._hidden = HiddenGeometry(model, self._camera.fixedcamid, _VISUAL_GROUP, self._context)
        self._perturbation = mujoco.MjvPerturb()
        self._viewport = mujoco.MjrRect(0, 0, side, side)

    def take(self, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
        """The picture, uint8 `[side, side, 3]`, first row at the bottom as OpenGL has it."""
        self._gl.make_current()
        self._hidden.leave_out(model, data)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self._options, self._perturbation, self._camera, everything, self._scene)
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        picture = np.empty((self._viewport.height, self._viewport.width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, self._viewport, self._context)
        return picture

    def close(self) -> None:
        """Frees the GL context and what lies in it."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()
