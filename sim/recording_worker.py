"""One process that records episodes on command, seen from both ends of its pipe.

Knows how to build, keep and replace a simulator and what to do when it dies; does not choose what is recorded.
"""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from zlib import crc32

import numpy as np

from policy.training.demonstrations import demonstration_name
from sim.driving import AlternatingDriver, LoneDriver, Stretches
from sim.noise import BurstNoise
from sim.schedule import Item
from sim.threads import single_threaded_children

if TYPE_CHECKING:
    from bridge.client import PolicyClient
    from sim.libero import LiberoEnv

_DRIVER_TIMEOUT_S = 10.0  # a policy server's answer; many workers share one
_DEATHS = 3  # in a row: not an unlucky episode any more but a broken installation


class CollectionError(RuntimeError):
    """A worker cannot get to work at all; the message says why, or how it ended."""


@dataclass(frozen=True, slots=True)
class Recording:
    """How a worker records: where files go, the noise's sigma and the share of episodes that get it.

    frames: False leaves the rendering for later, which is ten times as fast.
    render_device: EGL device number, None for the usual one.
    stride: of the episodes that the expert drives alone, one control step in so many is kept.
    driven_limit: share of the task's step limit after which an episode that a policy helps to drive ends.
    mesh_cell: metres to which meshes are simplified, 0 for not at all.
    stretches: of policy and expert, which drive in turn; None: the policy drives whole episodes.
    """

    output: Path
    noise: float
    noisy_fraction: float
    frames: bool = True
    render_device: int | None = None
    mesh_cell: float = 0.0
    stride: int = 1
    driven_limit: float = 1.0
    stretches: Stretches | None = field(default_factory=Stretches)


@dataclass(frozen=True, slots=True)
class Assignment:
    """One episode to record. driver_endpoint: policy server that drives, "" for the expert alone."""

    item: Item
    driver_endpoint: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one item.

    result: "stored", "unsolved" (the expert missed its goal; not stored) or "error" (the simulator failed; try again).
    solved: whether the goal was reached. An episode that a policy helped to drive is stored also where it was not: what
    the expert would have done where the policy fails is what the policy lacks most.
    detail: the cause of an error.
    """

    suite: str
    task: int
    seed: int
    result: Literal["stored", "unsolved", "error"]
    steps: int = 0
    detail: str = ""
    solved: bool = False


class RecordingWorker:
    """The parent's end: starts the process, hands it items one at a time and replaces it if it dies."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.item: Item | None = None
        self._deaths = 0  # in a row
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")
        self.connection, other_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(other_end, self._recording), daemon=True)
        with single_threaded_children():
            self._process.start()
        other_end.close()  # so that the process's death is seen as the end of the stream

    def assign(self, item: Item | None, driver_endpoint: str = "") -> bool:
        """Start recording an item; False if there is none. The outcome arrives at `connection`."""
        self.item = item
        if item is not None:
            self.connection.send(Assignment(item, driver_endpoint))
        return item is not None

    def outcome(self) -> Outcome:
        """What came of the assigned item; waits for it.

        Raises CollectionError if simulator or policy server cannot be reached, or the process keeps dying.
        """
        assert self.item is not None, "assign() first"
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            detail = f"the recording process died with exit code {self._process.exitcode}"
            self._deaths += 1
            if self._deaths == _DEATHS:
                raise CollectionError(f"{detail}, {_DEATHS} times in a row, last at {self.item}") from None
            self.connection.close()
            self._start()
            return Outcome(*self.item.key, self.item.seed, "error", detail=detail)
        if isinstance(message, str):
            raise CollectionError(f"{self.item.key.suite} task {self.item.key.task} cannot be recorded: {message}")
        self._deaths = 0
        return message

    def close(self) -> None:
        """End the process; an episode under way is dropped."""
        self.connection.close()
        self._process.terminate()
        self._process.join()


def _serve(connection: Connection, recording: Recording) -> None:
    """The process's end: record items until the pipe closes."""
    from bridge.errors import BridgeError

    if recording.render_device is not None:
        os.environ["MUJOCO_EGL_DEVICE_ID"] = str(recording.render_device)
    env: LiberoEnv | None = None
    seat = DriverSeat(recording.stretches)
    while True:
        try:
            assignment: Assignment = connection.recv()
        except (EOFError, KeyboardInterrupt):
            break
        item = assignment.item
        try:
            driver = seat.driver(assignment.driver_endpoint)
            if env is None or (env.task.suite, env.task.number) != item.key:
                if env is not None:
                    env.close()
                from sim.libero import LiberoEnv

                env = LiberoEnv(*item.key, render=recording.frames, mesh_cell=recording.mesh_cell)
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
            return
        try:
            outcome = record_item(env, item, recording, driver)
        except KeyboardInterrupt:
            break
        except (
            BridgeError
        ) as error:  # the world is as good as before; the server may be back, or another take its place
            outcome = Outcome(*item.key, item.seed, "error", detail=str(error))
            seat.leave()
        except Exception:
            outcome = Outcome(*item.key, item.seed, "error", detail=traceback.format_exc())
            env.close()
            env = None
        connection.send(outcome)
    if env is not None:
        env.close()


class DriverSeat:
    """Keeps the connection to the policy server that drives, and changes it when another endpoint is named.

    stretches: of it and the expert; None: it drives whole episodes.
    """

    def __init__(self, stretches: Stretches | None) -> None:
        self._stretches = stretches
        self._endpoint = ""
        self._client: PolicyClient | None = None

    def driver(self, endpoint: str) -> AlternatingDriver | LoneDriver | None:
        """The driver at this endpoint, None for "". Raises `bridge.errors.BridgeError` if it cannot be reached."""
        if endpoint != self._endpoint:
            self.leave()
        if not endpoint:
            return None
        if self._client is None:
            from bridge.client import PolicyClient

            self._client, self._endpoint = PolicyClient(endpoint, timeout_s=_DRIVER_TIMEOUT_S), endpoint
        return AlternatingDriver(self._client, self._stretches) if self._stretches else LoneDriver(self._client)

    def leave(self) -> None:
        """Closes the connection."""
        if self._client is not None:
            self._client.close()
        self._client, self._endpoint = None, ""


def record_item(
    env: LiberoEnv, item: Item, recording: Recording, driver: AlternatingDriver | LoneDriver | None = None
) -> Outcome:
    """Record one episode and store it if it reached its goal, or if a policy drove."""
    from sim.demonstrations import record_episode

    # Whether an episode is noisy depends on nothing but the episode, so that a resumed collection is the same.
    draw = np.random.default_rng((item.seed, item.key.task, crc32(item.key.suite.encode()), 1)).random()
    noise = BurstNoise(recording.noise) if recording.noise and draw < recording.noisy_fraction else None
    if driver is None:
        demonstration = record_episode(env, item.seed, noise=noise, stride=recording.stride)
    else:
        driver.reset(item.seed)
        most = round(recording.driven_limit * env.step_limit)
        demonstration = record_episode(
            env, item.seed, driver=driver, driver_name=driver.name, noise=noise, most_steps=most
        )
    steps = len(demonstration)
    solved = demonstration.meta.success
    if not solved and driver is None:
        return Outcome(*item.key, item.seed, "unsolved", steps)
    demonstration.save(recording.output / demonstration_name(*item.key, item.seed))
    return Outcome(*item.key, item.seed, "stored", steps, solved=solved)
