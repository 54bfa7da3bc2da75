"""How an episode is set up: the official LIBERO evaluation protocol and what an experiment changes about it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from sim.suites import STEP_LIMITS

# Rate of LIBERO's demonstrations, and so of the policies trained on them.
CONTROL_HZ = 20
# Ticks are whole numbers of physics steps of 2 ms, and long enough to take a picture in.
CONTROL_RATES = (CONTROL_HZ, 100)

# Sent while the scene settles: no motion, gripper open.
SETTLE_ACTION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])

# The one deviation that is always there. OpenVLA's script seeds once per task, so where the fixtures stand (up to 2 cm)
# depends on how many resets came before; here the world of an episode is the same run alone, resumed or on another
# worker. So are the actions of plain decoding and of the rule `exact`, up to rounding on a GPU; those of tolerant rules
# also depend on what their drafters, which all clients of a server share, have seen before (docs/latency.md).
SEEDED_EVERY_EPISODE = "simulator seeded before every episode (official: once per task)"


@dataclass(frozen=True, slots=True)
class Protocol:
    """What happens before the policy's first step, and when an episode ends. Defaults: OpenVLA's LIBERO evaluation.

    settle_steps: control steps of SETTLE_ACTION after the initial state is set; they do not count as policy steps.
    simulator_seed: seed of the simulator before every reset to an official state. It matters although the state is
        given: the poses of fixtures (cabinet, stove) are sampled by the reset and are not part of the state.
    step_limit: policy steps until an episode is cut off; None for the suite's own limit.
    resolution: side of the square camera frame in pixels.
    control_hz: control ticks per simulated second. A higher rate is a finer resolution of time: an action still lasts
        1/20 s unless a newer one replaces it, and limits stay the same in simulated time. See `sim.control_rate`.
    drift_mm_s: speed of the conveyor under the thing that the task is about, 0 for none. See `sim.drift`.
    """

    settle_steps: int = 10
    simulator_seed: int = 0
    step_limit: int | None = None
    resolution: int = 256
    control_hz: int = CONTROL_HZ
    drift_mm_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.settle_steps <= 1000:
            raise ValueError(f"settle_steps must be 0..1000, got {self.settle_steps}")
        if not 0 <= self.simulator_seed < 2**32:
            raise ValueError(f"simulator_seed must be 0..2^32-1, got {self.simulator_seed}")
        if self.step_limit is not None and not 1 <= self.step_limit <= 100_000:
            raise ValueError(f"step_limit must be 1..100000, or None for the suite's own limit; got {self.step_limit}")
        if not 16 <= self.resolution <= 4096:
            raise ValueError(f"resolution must be 16..4096 pixels, got {self.resolution}")
        if self.control_hz not in CONTROL_RATES:
            raise ValueError(f"control_hz must be one of {', '.join(map(str, CONTROL_RATES))}, got {self.control_hz}")
        if not 0.0 <= self.drift_mm_s <= 200.0:
            raise ValueError(f"drift_mm_s must be 0..200, got {self.drift_mm_s}")

    @property
    def ticks_per_step(self) -> int:
        """Control ticks in one step of the official control rate."""
        return self.control_hz // CONTROL_HZ

    def deviations(self) -> tuple[str, ...]:
        """Changes to the original script: SEEDED_EVERY_EPISODE, then e.g. `settle_steps=0 (official: 10)`."""
        changed = []
        for field in fields(self):
            value, official = getattr(self, field.name), "the suite's" if field.default is None else field.default
            if value != field.default:
                changed.append(f"{field.name}={value} (official: {official})")
        return (SEEDED_EVERY_EPISODE, *changed)


OFFICIAL = Protocol()


def foreign_statistics(unnorm_key: str, suite: str) -> tuple[str, ...]:
    """A deviation where actions are scaled by the statistics of another suite of LIBERO than the one that is run.

    The official script takes the suite's own. Statistics of other data, such as several suites together ("libero"),
    belong to no suite, and variants of a suite (LIBERO-PRO) are that suite here.
    """
    trained = unnorm_key.removesuffix("_no_noops")
    if trained not in STEP_LIMITS or suite == trained or suite.startswith(f"{trained}_"):
        return ()
    return (f"actions scaled by statistics of {trained} (official: the suite's)",)
