"""Collects demonstrations with many processes, balanced over tasks, resumable, and stopped by a time limit.

Knows what is wanted and what is there already; leaves the order to `sim.schedule`, the recording to
`sim.recording_worker`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from zlib import crc32

from policy.training.demonstrations import demonstration_name, list_demonstrations
from sim.driving import Stretches
from sim.recording_worker import Outcome, Recording, RecordingWorker
from sim.schedule import FIRST_TRAINING_SEED, BalancedSchedule, Item, TaskKey

FAILURES_FILE = "failures.jsonl"


@dataclass(frozen=True, slots=True)
class CollectionConfig:
    """What to collect.

    output: folder of the demonstrations.
    suites, tasks: the tasks of these numbers in each of the suites.
    episodes: attempts per task, with the seeds from first_seed on; the expert's failures are counted but not stored.
    noise: standard deviation of the bursts on executed actions, in action units, in noisy_fraction of the episodes.
    driver_endpoint: policy server that drives in turn with the expert (dataset aggregation), "" for the expert alone.
    driver_alone: it drives whole episodes, undisturbed and up to the step limit: what it sees when nobody helps.
    stretch: control steps on end that it drives on average, before the expert takes over for some; see `Stretches`.
    expert_share: of the episodes, that the expert drives alone even so.
    emphasis: tasks that are missed often get up to 1 + emphasis times as many episodes, while time lasts.
    frames: False stores episodes without frames, ten times as fast; `scripts/render_demos.py` adds them.
    stride: of the episodes that the expert drives alone, one control step in so many is rendered and stored.
    driven_limit: share of the task's step limit after which an episode ends that a policy helps to drive: what is not
        solved by then is mostly beyond rescue, such as a cup that lies on its side, and its frames teach little.
    workers: processes, each with a simulator of its own.
    render_devices: EGL device numbers that the workers take in turn; MUJOCO_EGL_DEVICE_ID or the first one if empty.
    mesh_cells: metres, taken in turn as well: see `sim.mesh_simplification`; meshes as they are if empty or 0.
    time_limit: seconds after which no new episode starts, 0 for none.
    """

    output: Path
    suites: tuple[str, ...] = ("libero_object", "libero_spatial")
    tasks: tuple[int, ...] = tuple(range(10))
    episodes: int = 60
    first_seed: int = FIRST_TRAINING_SEED
    noise: float = 0.25
    noisy_fraction: float = 0.75
    driver_endpoint: str = ""
    driver_alone: bool = False
    stretch: float = Stretches().policy
    expert_share: float = 0.0
    emphasis: float = 0.0
    frames: bool = True
    stride: int = 1
    driven_limit: float = 0.6
    workers: int = 2
    render_devices: tuple[int, ...] = ()
    mesh_cells: tuple[float, ...] = ()
    time_limit: float = 0.0

    def __post_init__(self) -> None:
        if not self.suites or not self.tasks:
            raise ValueError(f"name at least one suite and one task, got suites {self.suites} and tasks {self.tasks}")
        if self.first_seed < FIRST_TRAINING_SEED:
            raise ValueError(f"first_seed must be at least {FIRST_TRAINING_SEED}, got {self.first_seed}")
        if self.episodes < 1 or self.workers < 1:
            raise ValueError(f"episodes and workers must be at least 1, got {self.episodes} and {self.workers}")
        if not 0.0 < self.driven_limit <= 1.0:
            raise ValueError(f"driven_limit is a share of the step limit, above 0 and up to 1, got {self.driven_limit}")
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1 control step, got {self.stride}")
        if not 0.0 <= self.noise <= 1.0 or not 0.0 <= self.noisy_fraction <= 1.0:
            raise ValueError(f"noise and noisy_fraction must be 0..1, got {self.noise} and {self.noisy_fraction}")
        if not 0.0 <= self.expert_share <= 1.0 or self.emphasis < 0.0:
            raise ValueError(
                f"expert_share must be 0..1 and emphasis not negative, got {self.expert_share} and {self.emphasis}"
            )
        if min((*self.render_devices, *self.mesh_cells), default=0) < 0:
            raise ValueError(f"devices and cells must not be negative, got {self.render_devices} and {self.mesh_cells}")
        Stretches(self.stretch)  # says what is wrong with it
        if self.driver_alone and not self.driver_endpoint:
            raise ValueError("driver_alone needs a policy server that drives; name it with driver_endpoint")
        if self.time_limit < 0.0:
            raise ValueError(f"time_limit must be seconds, or 0 for none, got {self.time_limit}")

    def expert_alone(self, item: Item) -> bool:
        """Whether the expert drives alone: depends on nothing but the episode, so a resumed collection is the same."""
        name = demonstration_name(*item.key, item.seed)
        return crc32(name.encode()) % 1000 < 1000 * self.expert_share

    def recording(self, worker: int) -> Recording:
        """How the worker of this number records."""
        device = self.render_devices[worker % len(self.render_devices)] if self.render_devices else None
        cell = self.mesh_cells[worker % len(self.mesh_cells)] if self.mesh_cells else 0.0
        alone = self.driver_alone
        return Recording(
            self.output,
            noise=0.0 if alone else self.noise,
            noisy_fraction=self.noisy_fraction,
            frames=self.frames,
            render_device=device,
            mesh_cell=cell,
            stride=self.stride,
            driven_limit=1.0 if alone else self.driven_limit,
            stretches=None if alone else Stretches(self.stretch),
        )

    def items(self) -> list[Item]:
        """Every episode that is wanted."""
        keys = [TaskKey(suite, task) for suite in self.suites for task in self.tasks]
        seeds = range(self.first_seed, self.first_seed + self.episodes)
        return [Item(key, seed) for key in keys for seed in seeds]


@dataclass(slots=True)
class Summary:
    """A collection so far.

    skipped: episodes that an earlier run stored or tried in vain. remaining: not attempted yet.
    frames: stored by this run.
    attempts, successes: of this run, by suite. errors: episodes of this run that broke off, which say nothing of
    whoever drove and are no attempts; the next run tries them again.
    """

    skipped: int
    remaining: int
    frames: int = 0
    seconds: float = 0.0
    attempts: dict[str, int] = field(default_factory=dict)
    successes: dict[str, int] = field(default_factory=dict)
    errors: int = 0

    def add(self, outcome: Outcome, seconds: float) -> None:
        """Count one outcome, `seconds` after the start."""
        stored = outcome.result == "stored"
        self.remaining -= 1
        self.frames += outcome.steps if stored else 0
        self.seconds = seconds
        if outcome.result == "error":
            self.errors += 1
            return
        self.attempts[outcome.suite] = self.attempts.get(outcome.suite, 0) + 1
        self.successes[outcome.suite] = self.successes.get(outcome.suite, 0) + outcome.solved

    def __str__(self) -> str:
        episodes, seconds = sum(self.attempts.values()), max(self.seconds, 1e-9)
        solved = ", ".join(f"{suite} {self.successes[suite]}/{count}" for suite, count in sorted(self.attempts.items()))
        return (
            f"{self.seconds:.0f} s: {episodes} episodes, {self.remaining} to go, {self.skipped} skipped,"
            f" {self.frames} frames; {episodes / seconds:.2f} episodes/s, {self.frames / seconds:.1f} frames/s;"
            f" solved {solved or 'none yet'}" + (f"; {self.errors} errors, to be repeated" if self.errors else "")
        )


def collect(
    config: CollectionConfig,
    on_progress: Callable[[Summary], None] | None = None,
    driver_endpoint: Callable[[], str] | None = None,
    finished: Callable[[], bool] = lambda: False,
) -> Summary:
    """Record what is wanted and not there yet. May be interrupted and repeated: every stored file is complete.

    on_progress: called after every episode.
    driver_endpoint: asked before every episode, for servers that come and go; `config.driver_endpoint` if not given.
    finished: asked after every episode, and every second; when true the episodes under way are dropped.
    Raises CollectionError where simulator or policy server cannot be reached.
    """
    wanted, done = config.items(), _already_done(config.output)
    waiting = (item for item in wanted if demonstration_name(*item.key, item.seed) not in done)
    schedule = BalancedSchedule(waiting, config.emphasis)
    endpoint = driver_endpoint or (lambda: config.driver_endpoint)

    def begin(worker: RecordingWorker, current: TaskKey | None) -> bool:
        item = schedule.next(current)
        alone = item is None or config.expert_alone(item)
        return worker.assign(item, "" if alone else endpoint())

    summary = Summary(skipped=len(wanted) - len(schedule), remaining=len(schedule))
    config.output.mkdir(parents=True, exist_ok=True)
    workers = [RecordingWorker(config.recording(number)) for number in range(min(config.workers, len(schedule)))]
    started = time.monotonic()
    try:
        busy = [worker for worker in workers if begin(worker, None)]
        while busy and not finished():
            ready = set(wait([worker.connection for worker in busy], timeout=1.0))
            for worker in [worker for worker in busy if worker.connection in ready]:
                outcome = worker.outcome()
                key = TaskKey(outcome.suite, outcome.task)
                summary.add(outcome, time.monotonic() - started)
                schedule.report(key, solved=outcome.solved or outcome.result == "error")
                if outcome.result != "stored":
                    _append_line(config.output / FAILURES_FILE, outcome)
                if on_progress is not None:
                    on_progress(summary)
                late = config.time_limit > 0 and summary.seconds >= config.time_limit
                if late or not begin(worker, key):
                    busy.remove(worker)
    finally:
        for worker in workers:
            worker.close()
    return summary


def _already_done(output: Path) -> set[str]:
    """File names of the episodes that are stored, or that the expert is known to miss; errors are tried again."""
    done = {path.name for path in list_demonstrations(output)}
    failures = output / FAILURES_FILE
    for line in failures.read_text().splitlines() if failures.is_file() else ():
        outcome = Outcome(**json.loads(line))
        if outcome.result == "unsolved":
            done.add(demonstration_name(outcome.suite, outcome.task, outcome.seed))
    return done


def _append_line(path: Path, outcome: Outcome) -> None:
    with path.open("a") as file:
        file.write(json.dumps(asdict(outcome)) + "\n")


class ProgressLines:
    """Prints a collection's progress now and then, as plain lines that also suit a log file; for `on_progress`."""

    def __init__(self, seconds: float = 15.0) -> None:
        self._seconds, self._printed_at = seconds, -math.inf

    def __call__(self, summary: Summary) -> None:
        if time.monotonic() - self._printed_at >= self._seconds:
            self._printed_at = time.monotonic()
            print(summary, flush=True)
