"""A whole evaluation: which episodes, resumed from what is on disk, run by workers, recorded one by one.

Knows how to turn an episode's outcome into a record. Does not know how success is summarised (`sim.summary`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from policy.results import command, commit, hardware, versions
from policy.types import PolicySpec
from sim.decoding_statistics import DecodingStatistics
from sim.environments import initial_state_count, task_instruction
from sim.episode_key import EpisodeKey, Settings
from sim.episode_queue import EpisodeItem
from sim.episode_worker import EpisodeDone, EpisodeFailed
from sim.newest_records import newest_of
from sim.policy_hosts import PolicyHost
from sim.protocol import OFFICIAL, Protocol, foreign_statistics
from sim.records import EndReason, EpisodeLog, EpisodeRecord, Latency, Outcome
from sim.timing import LOCK_STEP, Timing
from sim.video import require_encoder
from sim.workers import WorkerPool

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """What to evaluate.

    output: the JSONL file; episodes it holds already are not run again, errors are.
    suites, tasks, init_states: every task of these numbers in every suite, from every one of these initial states.
    workers: processes, each with a simulator of its own.
    timing: the clock, latencies and what the arm does meanwhile.
    videos: folder for films of the first videos_per_task episodes of each task; None for no films.
    time_limit: seconds after which no further episode is started; a later run goes on.
    render_devices: EGL devices that workers take turns on; none leaves the choice to MUJOCO_EGL_DEVICE_ID.
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
    render_devices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not (self.suites and self.tasks and self.init_states):
            raise ValueError("name at least one suite, one task and one initial state")
        if min(self.tasks) < 0 or min(self.init_states) < 0:
            raise ValueError(f"tasks and initial states count from 0, got {self.tasks} and {self.init_states}")
        for name in ("workers", "videos_per_task"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.render_devices, default=0) < 0:
            raise ValueError(f"EGL devices count from 0, got {self.render_devices}")
        if not self.time_limit > 0:
            raise ValueError(f"time_limit must be a positive number of seconds, got {self.time_limit}")

    def items(self, policy: int = 0) -> list[EpisodeItem]:
        """Every episode, task by task. policy: its number among a pool's."""
        return [
            EpisodeItem(suite, task, state, self._video(suite, task, position), self.protocol, self.timing, policy)
            for suite in self.suites
            for task in self.tasks
            for position, state in enumerate(self.init_states)
        ]

    def _video(self, suite: str, task: int, position: int) -> Path | None:
        if self.videos is None or position >= self.videos_per_task:
            return None
        return self.videos / f"{suite}-{task:02d}-{self.init_states[position]:02d}.mp4"


def dealt_out(config: EvaluationConfig, hosts: Sequence[PolicyHost]) -> list[tuple[EvaluationConfig, PolicyHost]]:
    """The same evaluation by several hosts of the same policy, each of which gets some of the tasks."""
    tasks = [config.tasks[number :: len(hosts)] for number in range(len(hosts))]
    return [(replace(config, tasks=own), host) for own, host in zip(tasks, hosts, strict=True) if own]


def evaluate_all(
    evaluations: Sequence[tuple[EvaluationConfig, PolicyHost]], *, live: int = 1, progress: bool = True
) -> list[list[EpisodeRecord]]:
    """Runs what is missing and returns the newest record of every episode, earlier runs' included, by evaluation.

    All are run by the same workers, who keep a world for everything of one protocol, whatever the policy. Evaluations
    with the same host share its policy, which is brought up when the first of its episodes is due and down after the
    last; it stays down where none is missing. live: policies that share the workers at a time. The episodes of one that
    cannot be brought up, or that has gone, become errors.

    Workers, time limit, which bringing up policies counts towards, and render devices are those of the first
    configuration. Episodes that the time limit has left no time for are left out. Privileged policies are run without
    rendering, unless films are wanted. An interrupt leaves valid files.

    Raises WorkerSetupError where no world or policy can be opened, VideoUnavailableError, UnknownSuiteError, and
    ValueError for initial states that a task does not have, for an output file of something else, where two evaluations
    would run the same episodes, and where a policy turns out to be another than its host has told.
    """
    started = time.monotonic()
    first = evaluations[0][0]
    _check_exist([config for config, _ in evaluations])
    hosts = list({id(host): host for _, host in evaluations}.values())
    circumstances = _Circumstances.now()
    specs = [host.spec() for host in hosts]
    _warn_of_statistics([config for config, _ in evaluations], specs)
    numbers = {id(host): number for number, host in enumerate(hosts)}
    runs = [_Run(config, numbers[id(host)], specs[numbers[id(host)]], circumstances) for config, host in evaluations]
    keys = [run.key(item) for run in runs for item in run.items]
    if len(set(keys)) < len(keys):
        raise ValueError(f"{len(keys) - len(set(keys))} episodes are in two of these evaluations; give each once")
    episodes = {item: run for run in runs for item in run.items}
    missing = [item for run in runs for item in run.missing()]
    filmed = any(config.videos for config, _ in evaluations)
    if filmed:
        require_encoder()
    render = filmed or not all(spec.privileged for spec in specs)
    pool = WorkerPool(hosts, first.workers, render, live=live, render_devices=first.render_devices)
    with _Display(len(keys), len(missing), progress) as display, pool:
        for item, outcome in pool.run(missing, started + first.time_limit):
            display.count(episodes[item].finish(item, outcome))
    return [run.newest() for run in runs]


class _Run:
    """One evaluation: its episodes, the file of their records and what turns outcomes into them."""

    def __init__(self, config: EvaluationConfig, policy: int, spec: PolicySpec, circumstances: _Circumstances) -> None:
        self.items = config.items(policy)
        self._recorder = _Recorder(spec, config.protocol, config.timing, circumstances)
        self._log = EpisodeLog(config.output)

    def key(self, item: EpisodeItem) -> EpisodeKey:
        """What tells this episode from all others."""
        return self._recorder.key(item)

    def missing(self) -> list[EpisodeItem]:
        """Episodes without a record, or with one of an error."""
        newest = self._newest()
        return [
            item
            for item in self.items
            if (found := newest.get(self.key(item))) is None or found.outcome is Outcome.ERROR
        ]

    def finish(self, item: EpisodeItem, outcome: EpisodeDone | EpisodeFailed) -> EpisodeRecord:
        """Records an episode that has just ended."""
        record = self._recorder.record(item, outcome)
        self._log.append(record)
        return record

    def newest(self) -> list[EpisodeRecord]:
        """The newest record of every episode that was ever run."""
        return list(self._newest().values())

    def _newest(self) -> dict[EpisodeKey, EpisodeRecord]:
        return newest_of(map(self.key, self.items), self._log.records)


def _check_exist(configs: Sequence[EvaluationConfig]) -> None:
    """Raises ValueError for what does not exist, so that nothing is started in vain."""
    wanted = {
        (suite, task, max(config.init_states)): None
        for config in configs
        for suite in config.suites
        for task in config.tasks
    }
    for suite, task, state in wanted:
        task_instruction(suite, task)
        last = initial_state_count(suite, task) - 1
        if state > last:
            raise ValueError(f"{suite} task {task} has no initial state {state}; choose 0 to {last}")


def _warn_of_statistics(configs: Sequence[EvaluationConfig], specs: Sequence[PolicySpec]) -> None:
    """A checkpoint that was fine-tuned on one suite acts in the others, too, but in the wrong units."""
    suites = dict.fromkeys(suite for config in configs for suite in config.suites)
    for key in dict.fromkeys(spec.unnorm_key for spec in specs):
        if foreign := [suite for suite in suites if foreign_statistics(key, suite)]:
            LOGGER.warning(
                "the policy scales its actions by statistics of %s, so that success in %s is not by the official "
                "protocol; give a checkpoint or an unnorm_key of that suite",
                key,
                ", ".join(foreign),
            )


@dataclass(frozen=True, slots=True)
class _Circumstances:
    """What is the same for all episodes of one call."""

    commit: str
    hardware: dict[str, Any]
    command: str
    versions: dict[str, str]

    @classmethod
    def now(cls) -> _Circumstances:
        return cls(commit(), hardware(), command(), versions())


class _Recorder:
    """Turns outcomes into records. spec: what the policy is as far as it is known before it is up."""

    def __init__(self, spec: PolicySpec, protocol: Protocol, timing: Timing, circumstances: _Circumstances) -> None:
        self._spec = spec
        self._protocol = protocol
        self._timing = (timing.clock, protocol.deviations(), timing.conditions())
        self._circumstances = circumstances

    def key(self, item: EpisodeItem) -> EpisodeKey:
        """What the record of this episode will be found by."""
        names, settings = _identity(self._spec)
        return EpisodeKey(item.suite, item.task, item.init_state, *names, *self._timing, settings)

    def record(self, item: EpisodeItem, outcome: EpisodeDone | EpisodeFailed) -> EpisodeRecord:
        """The record of an episode that has just ended. Raises ValueError if another policy has acted in it."""
        done = outcome if isinstance(outcome, EpisodeDone) else None
        spec = done.spec if done else self._spec
        (names, settings), (wanted_names, wanted_settings) = _identity(spec), _identity(self._spec)
        if names != wanted_names or not settings.agrees(wanted_settings):
            raise ValueError(f"the policy is {_identity(spec)}, but was to be {_identity(self._spec)}")
        result = done.result if done else None
        decision_ms, traces = (result.decision_ms, result.traces) if result else ((), ())
        policy_versions = {f"policy:{name}": version for name, version in spec.versions.items()}
        told = {name: value for name, value in self.key(item)._asdict().items() if name != "settings"}
        return EpisodeRecord(
            **told,
            instruction=task_instruction(item.suite, item.task),
            seed=self._protocol.simulator_seed,
            device=spec.device,
            dtype=spec.dtype,
            decoding_digest=spec.decoding_digest,
            image_path=spec.image_path,
            prompt_template=spec.prompt_template,
            privileged=spec.privileged,
            renderer=done.renderer if done else "",
            versions=self._circumstances.versions | policy_versions,
            commit=self._circumstances.commit,
            outcome=_outcome(outcome),
            end_reason=_end_reason(outcome),
            error="" if isinstance(outcome, EpisodeDone) else outcome.message,
            steps=result.steps if result else 0,
            latency=Latency.of(decision_ms) if decision_ms else None,
            target_passes=float(np.mean([trace.target_passes for trace in traces])) if traces else 0.0,
            decoding=DecodingStatistics.of(traces),
            control=result.control if result else None,
            decision_ms=tuple(round(milliseconds, 3) for milliseconds in decision_ms),
            hardware=self._circumstances.hardware,
            command=self._circumstances.command,
            seconds=done.seconds if done else 0.0,
            finished_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )


def _identity(spec: PolicySpec) -> tuple[tuple[str, str, str, str], Settings]:
    """What records tell policies apart by."""
    return (spec.policy_id, spec.checkpoint_hash, spec.unnorm_key, spec.decoder), Settings.of(spec)


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
        self._progress.update(
            self._task, advance=1, description=f"{record.decoder}, {record.suite} task {record.task}: {rate}"
        )
