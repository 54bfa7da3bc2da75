"""Frames to train drafters on: some of each task, no more of them at once than asked for, and none without a text."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from policy.decoding.replay_target import ReplayTarget, add_replay_options
from policy.openvla.images import PreprocessorSettings
from policy.training import episode_reader
from policy.training.camera_episode import CameraEpisode
from policy.training.demonstrations import DemonstrationError
from policy.training.episode_reader import EpisodeReader, FrameSource, SizedEpisode, demonstration_paths
from policy.training.frame_library import FrameLibrary, load_libraries

SUITES = ("libero_goal", "libero_object", "libero_spatial")


class Threads(ThreadPoolExecutor):
    """Instead of processes, which take seconds to start. Notes what it was asked to read."""

    made: list[Threads] = []  # noqa: RUF012

    def __init__(self, processes: int, mp_context: Any) -> None:
        super().__init__(processes)
        self.paths: list[Path] = []
        self.made.append(self)

    def submit(self, function: Callable[[Path], SizedEpisode], path: Path) -> Future[SizedEpisode]:  # type: ignore
        self.paths.append(path)
        return super().submit(function, path)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> type[Threads]:
    monkeypatch.setattr(Threads, "made", [])
    monkeypatch.setattr(episode_reader, "ProcessPoolExecutor", Threads)
    return Threads


@pytest.fixture
def suites(demonstrations: Path, tmp_path: Path) -> Path:
    """A folder of 60 episodes, 3 frames each, of three suites."""
    (tmp_path / "suites").mkdir()
    (first, *_) = sorted(demonstrations.iterdir())
    for suite in SUITES:
        for seed in range(20):
            shutil.copy(first, tmp_path / "suites" / f"{suite}_task{seed % 10:02d}_seed{seed}.npz")
    return tmp_path / "suites"


def reader(frames: object, path: Any = "libero", processes: int = 2) -> EpisodeReader:
    return EpisodeReader(FrameSource(str(frames)), path, PreprocessorSettings(), processes)


def test_a_small_capacity_takes_some_of_each_suite_and_says_what_it_leaves(
    suites: Path, threads: type[Threads]
) -> None:
    lines: list[str] = []
    training, validation = load_libraries(reader(suites), 45, 5, lines.append)
    assert len(training) + len(validation) == 45
    assert lines == ["15 episodes fill the capacity of 45 frames; 45 of 60 were left out"]
    (pool,) = threads.made
    assert len(pool.paths) <= 15 + 1 + 2 * 2, "only a few are read ahead"
    assert {path.name[: len("libero_goal")] for path in pool.paths[:15]} == {suite[:11] for suite in SUITES}
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(lambda path: SizedEpisode("", "", np.empty(0)), suites)


def test_the_order_of_demonstrations_stays_when_others_join(suites: Path) -> None:
    order = [path.name for path in demonstration_paths(suites)]
    assert order != sorted(order)
    for gone in order[::2]:
        (suites / gone).unlink()
    assert [path.name for path in demonstration_paths(suites)] == order[1::2]


def test_reading_stops_when_nobody_wants_more(suites: Path, threads: type[Threads]) -> None:
    episodes = iter(reader(suites))
    assert len(next(episodes).frames) == 3
    episodes.close()
    assert len(threads.made[0].paths) <= 1 + 2 * 2
    with pytest.raises(RuntimeError, match="after shutdown"):
        threads.made[0].submit(lambda path: SizedEpisode("", "", np.empty(0)), suites)


def test_frames_are_kept_where_they_are() -> None:
    """A copy of all of them would take twice the memory while it is made."""
    frames = np.zeros((3, 224, 224, 3), np.uint8)
    library = FrameLibrary([SizedEpisode("a", "open", frames), SizedEpisode("b", "close", frames[:1].copy())])
    frames[2] = 7
    assert library.frames(torch.tensor([3, 2]))[:, 0, 0, 0].tolist() == [0, 7]
    assert library.texts(torch.tensor([3, 2])) == ("close", "open")
    assert (len(library), library.instructions) == (4, ("open", "close"))


def test_demonstrations_are_refused_for_targets_that_see_otherwise(
    demonstrations: Path, acting_checkpoint: Path
) -> None:
    complaint = "image path is 'processor', and demonstrations are stored for 'libero'"
    with pytest.raises(ValueError, match=complaint):
        reader(demonstrations, "processor")
    parser = ArgumentParser()
    add_replay_options(parser)
    options = [str(demonstrations), "--checkpoint", str(acting_checkpoint), "--dtype", "float32", "--image-path"]
    with pytest.raises(ValueError, match=complaint):
        ReplayTarget.load(parser.parse_args([*options, "processor"]))
    assert ReplayTarget.load(parser.parse_args([*options, "libero"])).image_path == "libero"


def partly_labelled() -> Iterator[CameraEpisode]:
    """An adapter, three of whose six episodes say nothing."""
    for number in range(6):
        yield CameraEpisode(str(number), "open" if number % 2 else " ", [np.zeros((8, 8, 3), np.uint8)])


def not_labelled() -> Iterator[CameraEpisode]:
    yield CameraEpisode("a", "", [np.zeros((8, 8, 3), np.uint8)])


def test_episodes_without_an_instruction_are_left_out_and_counted_once() -> None:
    lines: list[str] = []
    training, validation = load_libraries(reader("test_frame_library:partly_labelled"), 100, 2, lines.append)
    assert len(training) + len(validation) == 3
    assert training.instructions == ("open",)
    assert lines == ["3 episodes, or parts of one, have no instruction and were left out"]
    with pytest.raises(ValueError, match="no episode with frames and an instruction, and 1 without an instruction"):
        list(reader("test_frame_library:not_labelled"))


def test_a_damaged_demonstration_is_named(demonstrations: Path, threads: type[Threads]) -> None:
    damaged = sorted(demonstrations.iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(DemonstrationError, match=damaged.name):
        list(reader(demonstrations))
