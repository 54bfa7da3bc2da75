"""Brings up LIBERO's simulator on this machine: GL library, rendering device, and quiet.

Knows the quirks of importing robosuite, MuJoCo and their GL back end, all of which read environment variables when
they are imported; so the simulator is imported here and nowhere else. Does not know tasks or episodes.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.machinery import PathFinder
from typing import Any

LOGGER = logging.getLogger(__name__)

# Libraries each back end needs and the Debian packages that bring them; libGL is for OpenCV, which robosuite imports.
_LIBRARIES = {
    "egl": {"libEGL.so.1": "libegl1", "libGL.so.1": "libgl1"},
    "osmesa": {"libOSMesa.so.8": "libosmesa6", "libGL.so.1": "libgl1"},
    "glx": {"libGL.so.1": "libgl1"},
}


class RenderingUnavailableError(RuntimeError):
    """No working GL library or device; the message says what to install or set."""


def load_control_environment() -> Any:
    """LIBERO's `ControlEnv` class, imported without prompts, log noise or files in the home directory.

    Chooses EGL unless MUJOCO_GL says otherwise; the GPU (or Mesa's software device) is MUJOCO_EGL_DEVICE_ID if that
    is set and the first one that works if not. Raises RenderingUnavailableError, or ImportError where LIBERO is not
    installed.
    """
    backend = os.environ.setdefault("MUJOCO_GL", "egl").lower()
    _require_libraries(backend)
    if importlib.util.find_spec("libero") is None:
        raise ImportError("the LIBERO simulator is not installed; run: pip install 'specact[sim]'")
    with _quiet_import():
        _switch_off_log_file()
        if backend == "egl":
            _choose_egl_device()
        module = importlib.import_module("libero.libero.envs.env_wrapper")
    import mujoco

    # Otherwise MuJoCo appends its warnings to MUJOCO_LOG.TXT in whatever folder the process was started in.
    mujoco.set_mju_user_warning(lambda message: LOGGER.warning("MuJoCo: %s", message))
    return module.ControlEnv


def renderer_name() -> str:
    """Name of the GL renderer whose context is current, e.g. `llvmpipe (LLVM 19.1.7, 256 bits)`."""
    from OpenGL import GL

    return GL.glGetString(GL.GL_RENDERER).decode()


def _require_libraries(backend: str) -> None:
    if backend not in _LIBRARIES:
        raise RenderingUnavailableError(f"MUJOCO_GL is {backend!r}; choose one of {', '.join(_LIBRARIES)}")
    missing = [package for library, package in _LIBRARIES[backend].items() if not _loads(library)]
    if missing:
        raise RenderingUnavailableError(
            f"GL libraries for MUJOCO_GL={backend} are missing. On Debian, Ubuntu: apt-get install {' '.join(missing)}"
            " (on a machine without a GPU also libegl-mesa0 libgl1-mesa-dri)"
        )


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Silences robosuite's remarks, and keeps matplotlib, which it imports, from making folders in the home."""
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    # robosuite compares the EGL device number with the CUDA ones as text and stops where they differ, although the
    # two count differently. The choice is made in `_choose_egl_device`, so robosuite need not know the CUDA devices.
    hidden = {"CUDA_VISIBLE_DEVICES": os.environ.pop("CUDA_VISIBLE_DEVICES", None)}
    if "MPLCONFIGDIR" not in os.environ:
        hidden["MPLCONFIGDIR"] = None
        os.environ["MPLCONFIGDIR"] = os.path.join(tempfile.gettempdir(), f"matplotlib-{os.getuid()}")
    try:
        yield
    finally:
        for name, value in hidden.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _switch_off_log_file() -> None:
    """Keeps robosuite from opening /tmp/robosuite.log, which stops it where another user's file of that name lies.

    The switch is in its module `macros`, and importing that would import all of robosuite, which opens the file; so
    the module is put in place before its package.
    """
    package = importlib.util.find_spec("robosuite")
    if package is None or "robosuite" in sys.modules:
        return
    spec = PathFinder.find_spec("robosuite.macros", package.submodule_search_locations)
    assert spec is not None
    assert spec.loader is not None
    macros: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.FILE_LOGGING_LEVEL = None
    sys.modules[spec.name] = macros


def _choose_egl_device() -> None:
    """Sets MUJOCO_EGL_DEVICE_ID to the first device that can be initialised, unless the user has set it.

    robosuite tries one device only and reads CUDA_VISIBLE_DEVICES to find it, which fails on machines without a GPU,
    with GPU UUIDs, and in containers where the driver's EGL part is missing but Mesa's is there.
    """
    if os.environ.get("MUJOCO_EGL_DEVICE_ID"):
        return
    os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
    try:
        from mujoco.egl import egl_ext as egl

        devices = egl.eglQueryDevicesEXT()
    except (ImportError, AttributeError) as error:
        message = f"EGL cannot list devices ({error}). On Debian, Ubuntu: apt-get install libegl1 libegl-mesa0"
        raise RenderingUnavailableError(message) from error
    for number, device in enumerate(devices):
        if _initialises(egl, device):
            os.environ["MUJOCO_EGL_DEVICE_ID"] = str(number)
            return
    raise RenderingUnavailableError(
        f"none of the {len(devices)} EGL devices can be initialised. Without a GPU: apt-get install libegl-mesa0"
        " libgl1-mesa-dri. With one, the driver's EGL library must be visible (in containers:"
        " NVIDIA_DRIVER_CAPABILITIES=all)"
    )


def _initialises(egl: Any, device: Any) -> bool:
    from OpenGL import error

    display = egl.eglGetPlatformDisplayEXT(egl.EGL_PLATFORM_DEVICE_EXT, device, None)
    if display == egl.EGL_NO_DISPLAY:
        return False
    try:
        return bool(egl.eglInitialize(display, None, None) == egl.EGL_TRUE)
    except error.GLError:
        return False
