"""A whole evaluation: which episodes, resumed from what is on disk, run by workers, recorded one by one.

Knows how to turn an episode's outcome into a record. Does not know how success is summarised (`sim.summary`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from policy.results import command, commit, hardware, versions
from policy.types import PolicySpec
from sim.decoding_statistics import DecodingStatistics
from sim.environments import initial_state_count, task_instruction
from sim.protocol import OFFICIAL, Protocol
from sim.records import EndReason, EpisodeKey, EpisodeLog, EpisodeRecord, Latency, Outcome, newest_by_key
from sim.sources import PolicySource
from sim.timing import LOCK_STEP, Timing
from sim.video import require_encoder
from sim.workers import EpisodeDone, EpisodeFailed, EpisodeItem, WorkerPool


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """What to evaluate.

    output: the JSONL file; episodes it holds already are not run again, errors are.
    suites, tasks, init_states: every task of these numbers in every suite, from every one of these initial states.
    workers: processes, each with a simulator of its own.
    timing: the clock, latencies and what the arm does meanwhile.
    videos: folder for films of the first videos_per_task episodes of each task; None for no films.
    time_limit: seconds after which no further episode is started; a later run goes on.
    """

    output: Path
    suites: tuple[str, ...]
    tasks: tuple[int, ...] = tuple(range(10))
    init_states: tuple[int, ...] = tuple(range(50))
    workers: int = 1
    protocol: Protocol = OFFICIAL
    timing: Timing = LOCK_STEP
    videos: Path | None = None
    videos_per_task: int = 1
    time_limit: float = math.inf

    def __post_init__(self) -> None:
        if not (self.suites and self.tasks and self.init_states):
            raise ValueError("name at least one suite, one task and one initial state")
        if min(self.tasks) < 0 or min(self.init_states) < 0:
            raise ValueError(f"tasks and initial states count from 0, got {self.tasks} and {self.init_states}")
        for name in ("workers", "videos_per_task"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.time_limit > 0:
            raise ValueError(f"time_limit must be a positive number of seconds, got {self.time_limit}")

    def items(self) -> list[EpisodeItem]:
        """Every episode, task by task."""
        return [
            EpisodeItem(suite, task, state, self._video(suite, task, position), self.protocol, self.timing)
            for suite in self.suites
            for task in self.tasks
            for position, state in enumerate(self.init_states)
        ]

    def _video(self, suite: str, task: int, position: int) -> Path | None:
        if self.videos is None or position >= self.videos_per_task:
            return None
        return self.videos / f"{suite}-{task:02d}-{self.init_states[position]:02d}.mp4"


def evaluate(config: EvaluationConfig, source: PolicySource, *, progress: bool = True) -> list[EpisodeRecord]:
    """Runs what is missing and returns the newest record of every episode of `config`, earlier runs' included.

    Where the time limit was reached, episodes that were never run are left out.

    Privileged policies are run without rendering, unless films are wanted. An interrupt leaves a valid file.
    Raises WorkerSetupError where no world or policy can be opened, VideoUnavailableError, UnknownSuiteError, and
    ValueError for initial states that a task does not have and for an output file of something else.
    """
    return evaluate_all([config], source, progress=progress)[0]


def evaluate_all(
    configs: Sequence[EvaluationConfig], source: PolicySource, *, progress: bool = True
) -> list[list[EpisodeRecord]]:
    """Several evaluations of one policy by the same workers, who keep a world for all evaluations of its protocol.

    Number of workers and time limit are those of the first. Otherwise as `evaluate`, for each of them. Raises
    ValueError also where two of them would run the same episodes.
    """
    started = time.monotonic()
    spec = source.spec()
    runs = [_Run(config, spec) for config in configs]
    episodes = {item: run for run in runs for item in run.items}
    wanted = sum(len(run.items) for run in runs)
    if len(episodes) < wanted:
        raise ValueError(f"{wanted - len(episodes)} episodes are in two of these evaluations; give each once")
    missing = [item for run in runs for item in run.missing()]
    filmed = any(config.videos for config in configs)
    if filmed:
        require_encoder()
    pool = WorkerPool(source, configs[0].workers, render=filmed or not spec.privileged)
    with _Display(wanted, len(missing), progress) as display, pool:
        for item, outcome in pool.run(missing, started + configs[0].time_limit):
            display.count(episodes[item].finish(item, outcome))
    return [run.newest() for run in runs]


class _Run:
    """One evaluation: its episodes, the file of their records and what turns outcomes into them."""

    def __init__(self, config: EvaluationConfig, spec: PolicySpec) -> None:
        self.items = config.items()
        for suite, task in dict.fromkeys((item.suite, item.task) for item in self.items):
            _check_exists(suite, task, config.init_states)
        self._recorder = _Recorder(spec, config.protocol, config.timing)
        self._log = EpisodeLog(config.output)

    def missing(self) -> list[EpisodeItem]:
        """Episodes without a record, or with one of an error."""
        newest = newest_by_key(self._log.records)
        known = {key for key, record in newest.items() if record.outcome is not Outcome.ERROR}
        return [item for item in self.items if self._recorder.key(item) not in known]

    def finish(self, item: EpisodeItem, outcome: EpisodeDone | EpisodeFailed) -> EpisodeRecord:
        """Records an episode that has just ended."""
        record = self._recorder.record(item, outcome)
        self._log.append(record)
        return record

    def newest(self) -> list[EpisodeRecord]:
        """The newest record of every episode that was ever run."""
        newest = newest_by_key(self._log.records)
        return [newest[key] for item in self.items if (key := self._recorder.key(item)) in newest]


def _check_exists(suite: str, task: int, init_states: tuple[int, ...]) -> None:
    """Raises ValueError for what does not exist, so that nothing is started in vain."""
    task_instruction(suite, task)
    last = initial_state_count(suite, task) - 1
    if max(init_states) > last:
        raise ValueError(f"{suite} task {task} has no initial state {max(init_states)}; choose 0 to {last}")


class _Recorder:
    """Turns outcomes into records; everything that is the same for all episodes is collected once."""

    def __init__(self, spec: PolicySpec, protocol: Protocol, timing: Timing) -> None:
        self._spec = spec
        self._protocol = protocol
        self._timing = (timing.clock, protocol.deviations(), timing.conditions())
        self._commit, self._hardware, self._command = commit(), hardware(), command()
        self._versions = versions() | {f"policy:{name}": version for name, version in spec.versions.items()}

    def key(self, item: EpisodeItem) -> EpisodeKey:
        """What the record of this episode will be found by."""
        spec = self._spec
        policy = (spec.policy_id, spec.checkpoint_hash, spec.unnorm_key, spec.decoder)
        return EpisodeKey(item.suite, item.task, item.init_state, *policy, *self._timing)

    def record(self, item: EpisodeItem, outcome: EpisodeDone | EpisodeFailed) -> EpisodeRecord:
        """The record of an episode that has just ended."""
        done = outcome if isinstance(outcome, EpisodeDone) else None
        result = done.result if done else None
        decision_ms, traces = (result.decision_ms, result.traces) if result else ((), ())
        return EpisodeRecord(
            **self.key(item)._asdict(),
            instruction=task_instruction(item.suite, item.task),
            seed=self._protocol.simulator_seed,
            device=self._spec.device,
            dtype=self._spec.dtype,
            privileged=self._spec.privileged,
            renderer=done.renderer if done else "",
            versions=self._versions,
            commit=self._commit,
            outcome=_outcome(outcome),
            end_reason=_end_reason(outcome),
            error="" if isinstance(outcome, EpisodeDone) else outcome.message,
            steps=result.steps if result else 0,
            latency=Latency.of(decision_ms) if decision_ms else None,
            target_passes=float(np.mean([trace.target_passes for trace in traces])) if traces else 0.0,
            decoding=DecodingStatistics.of(traces),
            control=result.control if result else None,
            decision_ms=tuple(round(milliseconds, 3) for milliseconds in decision_ms),
            hardware=self._hardware,
            command=self._command,
            seconds=done.seconds if done else 0.0,
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _outcome(outcome: EpisodeDone | EpisodeFailed) -> Outcome:
    if isinstance(outcome, EpisodeFailed):
        return Outcome.ERROR
    return Outcome.SUCCESS if outcome.result.success else Outcome.FAILURE


def _end_reason(outcome: EpisodeDone | EpisodeFailed) -> EndReason:
    if isinstance(outcome, EpisodeFailed):
        return outcome.reason
    return EndReason.SOLVED if outcome.result.success else EndReason.STEP_LIMIT


class _Display:
    """A progress bar with the success rate so far."""

    def __init__(self, episodes: int, missing: int, visible: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), disable=not visible)
        self._task = self._progress.add_task("starting", total=episodes, completed=episodes - missing)
        self._counts = dict.fromkeys(Outcome, 0)

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def count(self, record: EpisodeRecord) -> None:
        """One more episode has ended."""
        self._counts[record.outcome] += 1
        valid = self._counts[Outcome.SUCCESS] + self._counts[Outcome.FAILURE]
        errors = f", {self._counts[Outcome.ERROR]} errors" if self._counts[Outcome.ERROR] else ""
        rate = f"{self._counts[Outcome.SUCCESS]}/{valid} solved{errors}"
        self._progress.update(self._task, advance=1, description=f"{record.suite} task {record.task}: {rate}")
