"""Makes a LIBERO scene step faster with exactly the same results.

Knows how robosuite 1.4 spends a reset (compiling a model it has compiled before) and a control period: 25 substeps of
`forward, controller (forward), step` and a round of some 60 observables each. Does not know tasks or protocols.

Two of the three forward passes repeat what the one before has computed for the same positions and velocities; only the
constraint solver goes on from where it stopped. So the passes after the first are cut down to that solver, which
leaves every bit of the trajectory as it was (tests compare it with the untouched simulator). Observables nobody reads
are not computed. What a substep does for the arm is made faster elsewhere (`sim.arm`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import mujoco

_SMALL_BYTES = 100_000


def keep_only_camera(domain: Any, sample: Callable[[], None]) -> None:
    """Takes all observables off a robosuite environment but one, whose reading is `sample()`.

    When in a control period robosuite reads a sensor depends on how many forced readings a reset has made (the
    substep before the last after an official reset, the last after a random one), so its own clock is kept rather
    than imitated.
    """
    from robosuite.utils.observables import Observable, sensor

    @sensor(modality="image")
    def read(cache: Any) -> float:
        sample()
        return 0.0  # the picture itself stays with whoever samples

    camera = Observable(name="camera", sensor=read, sampling_rate=domain.control_freq)
    domain._observables = {"camera": camera}
    domain._setup_observables = lambda: {"camera": camera}


@contextlib.contextmanager
def compiling_once() -> Iterator[None]:
    """Lets a robosuite environment that is made meanwhile share one compiled MuJoCo model with all of its resets.

    Making it compiles the scene, and so does every reset, which takes most of its time.
    """
    from robosuite.environments.base import MujocoEnv

    def initialize_first(domain: Any, xml_string: str | None = None) -> None:
        _reuse_compiled_model(domain)
        domain._initialize_sim(xml_string)

    initialize_sim = MujocoEnv._initialize_sim
    MujocoEnv._initialize_sim = initialize_first
    try:
        yield
    finally:
        MujocoEnv._initialize_sim = initialize_sim


def _reuse_compiled_model(domain: Any) -> None:
    """Lets a robosuite environment keep its compiled model.

    A reset writes a new scene description (XML), which differs from the last only if the scene's parts do; poses are
    sampled later and written into the compiled model. So where the XML is the same, all numbers of the compiled model
    are put back to what the compiler made of them, save the large ones (textures, meshes), which physics only read.
    """
    import mujoco
    from robosuite.utils.binding_utils import MjSim

    described = ""
    model: Any = None
    pristine: dict[str, np.ndarray] = {}

    def initialize_sim(xml_string: str | None = None) -> None:
        nonlocal described, model, pristine
        description = xml_string or domain.model.get_xml()
        if description != described:
            described, model = description, mujoco.MjModel.from_xml_string(description)
            pristine = _small_arrays(model)
        for name, values in pristine.items():
            getattr(model, name)[...] = values
        domain.sim = MjSim(model)
        domain.sim.forward()
        domain.initialize_time(domain.control_freq)

    def destroy_sim() -> None:
        domain.sim = None  # robosuite also runs the garbage collector here, for the sake of the model that we keep

    domain._initialize_sim, domain._destroy_sim = initialize_sim, destroy_sim


def _small_arrays(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    """Copies of all of a model's arrays but textures, meshes and the like, by name."""
    arrays = ((name, getattr(model, name)) for name in dir(model) if not name.startswith("_"))
    return {name: a.copy() for name, a in arrays if isinstance(a, np.ndarray) and a.nbytes <= _SMALL_BYTES}


@contextlib.contextmanager
def shared_forward_passes(sim: Any, shown: np.ndarray) -> Iterator[None]:
    """For one control step, lets each substep of a robosuite MjSim make one pass over positions and velocities.

    Positions must only change through `sim.step` while this is active. shown: float64 `[nq]`, is kept at the positions
    that a picture taken at the moment shows: those of the last pass, one substep before the state.
    """
    import mujoco

    model, data = sim.model._model, sim.data._data
    velocities_known = False

    def forward() -> None:
        nonlocal velocities_known
        if not velocities_known:
            mujoco.mj_step1(model, data)  # positions and velocities, and MuJoCo's check for diverged states
            velocities_known = True
        mujoco.mj_forwardSkip(model, data, mujoco.mjtStage.mjSTAGE_VEL, 1)  # forces and constraints

    def step() -> None:
        nonlocal velocities_known
        shown[:] = data.qpos
        mujoco.mj_step2(model, data)
        velocities_known = False

    sim.forward, sim.step = forward, step
    try:
        yield
    finally:
        del sim.forward, sim.step
