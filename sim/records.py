"""One line of JSON per episode, appended as episodes end; the file is the result, and what a later run resumes from.
Archives hold the same lines, compressed.

Knows the schema and the file. Does not know how episodes are run or summarised.
"""

from __future__ import annotations

import lzma
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from policy.types import PolicySpec
from sim.control_statistics import ControlStatistics
from sim.decoding_statistics import DecodingStatistics
from sim.episode_key import EpisodeKey, Settings
from sim.protocol import foreign_statistics

FORMAT = 1
ARCHIVED = ".xz"
LOCK_STEP = "lock-step"


class Outcome(StrEnum):
    """Whether the task was solved; an error says nothing about the policy and stays out of success rates."""

    SUCCESS = "success"
    FAILURE = "failure"
    ERROR = "error"


class EndReason(StrEnum):
    """Why an episode ended."""

    SOLVED = "solved"
    STEP_LIMIT = "step_limit"
    EXCEPTION = "exception"
    PROCESS_DIED = "process_died"


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds per decision, from handing over the observation to having the action."""

    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency:
        """Statistics of at least one decision."""
        p50, p95, p99 = np.percentile(milliseconds, [50, 95, 99])
        return cls(float(np.mean(milliseconds)), float(p50), float(p95), float(p99))


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """One episode.

    suite, task, init_state: which; task and initial state are numbers from 0. instruction: what the robot was told.
    seed: the simulator's seed at the reset.
    policy_id, checkpoint_hash, unnorm_key, decoder, device, dtype, privileged: from the policy's PolicySpec; device and
        dtype are "" in errors of a policy that never came up.
    decoding_digest, image_path, prompt_template: from there, too; None, "" and "" in old files.
    clock: how simulated and real time go together: "lock-step", "charged" or "real-time". timing: its other conditions,
        e.g. "latency 150 ms"; empty on the lock-step clock.
    protocol_deviations: what differs from the official protocol. renderer: the GL renderer, "none" where not rendered.
    versions: of the packages that can change a result; the policy's own under "policy:<package>".
    commit: this repository's, "" outside of one.
    outcome, end_reason, error: how it ended; `error` is the message of an exception, "" otherwise.
    steps: control ticks, settling not counted. latency, target_passes: per decision; None and 0 after an error.
    seconds: wall time of the episode, reset included. finished_at: UTC, ISO 8601.
    decoding: how the actions came about; None for policies that decode no tokens, after an error and in old files.
    control: how fresh actions were and how the arm moved; None after an error and in old files.
    decision_ms: latency of every decision as the world has seen it, the one included that the end came before; a trace
        that another run can be charged with. Empty after an error, in old files and in archives of the lock-step clock.
    hardware, command: on what it ran and how to run it again; empty in old files.
    """

    suite: str
    task: int
    init_state: int
    instruction: str
    seed: int
    policy_id: str
    checkpoint_hash: str
    unnorm_key: str
    decoder: str
    device: str
    dtype: str
    privileged: bool
    clock: str
    protocol_deviations: tuple[str, ...]
    renderer: str
    versions: dict[str, str]
    commit: str
    outcome: Outcome
    end_reason: EndReason
    error: str
    steps: int
    latency: Latency | None
    target_passes: float
    seconds: float
    finished_at: str
    decoding: DecodingStatistics | None = None
    timing: tuple[str, ...] = ()
    control: ControlStatistics | None = None
    decision_ms: tuple[float, ...] = ()
    hardware: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    decoding_digest: str | None = None
    image_path: str = ""
    prompt_template: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"record format is {self.format}, this version reads {FORMAT}")
        if (self.outcome is Outcome.SUCCESS) != (self.end_reason is EndReason.SOLVED):
            raise ValueError(f"outcome {self.outcome} does not go with end reason {self.end_reason}")

    @property
    def key(self) -> EpisodeKey:
        """What a resumed run compares."""
        told = (getattr(self, name) for name in EpisodeKey._fields[:-1])
        return EpisodeKey._make((*told, Settings.of(self)))

    @property
    def deviations(self) -> tuple[str, ...]:
        """What differs from the official evaluation: in the protocol, and in the statistics that scale the actions."""
        return self.protocol_deviations + foreign_statistics(self.unnorm_key, self.suite)

    @property
    def machine(self) -> str:
        """The hardware in a line; "" where it is not told."""
        return ", ".join(f"{name}: {value}" for name, value in self.hardware.items())

    def is_of(self, spec: PolicySpec) -> bool:
        """Whether this policy ran it, as far as is told of both; device and versions do not count."""
        names = ("policy_id", "checkpoint_hash", "unnorm_key", "decoder")
        same = all(getattr(self, name) == getattr(spec, name) for name in names)
        return same and Settings.of(self).agrees(Settings.of(spec))


class EpisodeLog:
    """A JSONL file of EpisodeRecords that can be appended to.

    Opening it reads what is there. A last line that was cut off by a crash is dropped from the file; any other line
    that is no record raises ValueError with its number, so that a file of something else is never appended to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        complete = content[: content.rfind(b"\n") + 1]
        self.records = _decode_lines(complete, path)
        if len(complete) < len(content):
            os.truncate(path, len(complete))

    def append(self, record: EpisodeRecord) -> None:
        """Adds a line and waits until it is on the disk."""
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)


def read_records(path: Path) -> list[EpisodeRecord]:
    """All complete records of a file, oldest first; of an archive where its name ends in .xz. Raises ValueError for a
    line that is no record.
    """
    content = path.read_bytes()
    if path.suffix == ARCHIVED:
        try:
            content = lzma.decompress(content)
        except lzma.LZMAError as error:
            raise ValueError(f"{path} is no archive of episode records: {error}; give another file") from error
    return _decode_lines(content[: content.rfind(b"\n") + 1], path)


def _decode_lines(content: bytes, path: Path) -> list[EpisodeRecord]:
    decoder = msgspec.json.Decoder(EpisodeRecord)
    records = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            records.append(decoder.decode(line))
        except (msgspec.DecodeError, ValueError) as error:
            raise ValueError(f"{path} line {number} is no episode record: {error}; give another file") from error
    return records
