"""Makes a LIBERO scene step faster with exactly the same results.

Knows how robosuite 1.4 spends a control period: 25 substeps of `forward, controller (forward), step` and then a round
of some 60 observables. Does not know tasks or protocols.

Two of the three forward passes repeat what the one before has computed for the same positions and velocities; only the
constraint solver goes on from where it stopped. So the passes after the first are cut down to that solver, which
leaves every bit of the trajectory as it was (tests compare it with the untouched simulator). Observables nobody reads
are not computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


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
def shared_forward_passes(sim: Any) -> Iterator[None]:
    """For one control step, lets each substep of a robosuite MjSim make one pass over positions and velocities.

    Positions must only change through `sim.step` while this is active.
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
        mujoco.mj_step2(model, data)
        velocities_known = False

    sim.forward, sim.step = forward, step
    try:
        yield
    finally:
        del sim.forward, sim.step
