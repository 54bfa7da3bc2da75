"""The store of training frames: what it keeps, what it leaves out, and who ends with it."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_demonstrations import INSTRUCTIONS, decode_in_threads, record

from policy.training.demonstrations import Demonstration, demonstration_name, list_demonstrations
from policy.training.frames import FrameStore, newest_last

CPU = torch.device("cpu")

_TRAINING = """
import os, signal, sys
from pathlib import Path
import torch
from policy.training.frames import FrameStore
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
folder = Path(sys.argv[1])
store = FrameStore([folder / "0"], capacity=100, device=torch.device("cpu"), processes=1)
print(store.refresh(wait=True))
os.killpg(0, signal.SIGINT)
os.killpg(0, signal.SIGTERM)
store.directories.append(folder / "1")
print(store.refresh(wait=True), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    decode_in_threads(monkeypatch)


def aged(path: Path, seconds: float) -> Path:
    """The file, last changed so many seconds after some moment."""
    os.utime(path, (1e9 + seconds, 1e9 + seconds))
    return path


def test_a_store_that_does_not_fit_is_refused_by_its_size(tmp_path: Path):
    with pytest.raises(ValueError, match=r"1000000000 frames takes 150528\.0 GB on cpu"):
        FrameStore([tmp_path], capacity=1_000_000_000, device=CPU)


def test_a_full_store_keeps_the_newest_frames(tmp_path: Path, threads: None):
    for seed in range(3):
        record(tmp_path, 1000 + seed, INSTRUCTIONS[seed % 2], steps=4)
    store = FrameStore([tmp_path], capacity=10, device=CPU, processes=1)
    assert store.refresh(wait=True) == 12
    record(tmp_path, 1003, INSTRUCTIONS[1], steps=4)
    assert store.refresh(wait=True) == 4
    store.close()
    assert (store.count, store.episodes) == (10, 4)
    recorded = [Demonstration.load(path) for path in list_demonstrations(tmp_path)]
    newest = np.concatenate([episode.actions for episode in recorded])[-10:]
    assert sorted(store.actions.tolist()) == sorted(newest.tolist())
    kept = store.rows(torch.arange(10))
    for episode in recorded[2:]:
        of_it = [row for row in range(10) if store.actions[row].tolist() in episode.actions.tolist()]
        assert {store.instructions[kept.task[row]] for row in of_it} == {episode.meta.instruction}


@pytest.mark.parametrize("every", [10, 20, 40])
def test_the_share_that_is_held_out_is_that_of_every_suite(tmp_path: Path, every: int):
    """Seeds of one task follow one another, which a checksum of the names would not scatter."""
    training, validation = (FrameStore([tmp_path], 1, CPU, every, validation=part) for part in (False, True))
    for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10"):
        names = [Path(demonstration_name(suite, task, seed)) for task in range(10) for seed in range(1000, 1060)]
        held_out = [path for path in names if validation._takes(path)]
        assert 0.6 * len(names) / every < len(held_out) < 1.4 * len(names) / every
        assert [path for path in names if not training._takes(path)] == held_out
    nothing = FrameStore([tmp_path], 1, CPU, 0, validation=True)
    assert not any(map(nothing._takes, names))
    for store in (training, validation, nothing):
        store.close()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("together", [True, False])
def test_of_a_larger_folder_the_newest_of_every_task_are_kept(tmp_path: Path, together: bool):
    """together: recorded side by side; otherwise one suite after the other, which is also what rendering later does."""
    suites = ("libero_goal", "libero_object")
    for number, suite in enumerate(suites):
        for seed in range(4):  # the newest has the lowest seed
            age = seed if together else seed + 10 * (1 - number)
            aged(record(tmp_path, 10 * (100 + number) + seed, INSTRUCTIONS[number], 4, suite), -age)
    store = FrameStore([tmp_path], capacity=16, device=CPU, processes=1)
    assert store.refresh(wait=True) == 32
    store.close()
    kept = {tuple(row) for row in store.actions.tolist()}
    for number, suite in enumerate(suites):
        for seed in range(4):
            episode = Demonstration.load(tmp_path / f"{suite}_task00_seed{10 * (100 + number) + seed}.npz")
            assert ({tuple(row) for row in episode.actions.tolist()} <= kept) == (seed < 2)


def test_files_of_other_names_go_by_age(tmp_path: Path):
    paths = [tmp_path / name for name in ("c.npz", "a.npz", "b.npz")]
    for age, path in enumerate(paths):
        path.touch()
        aged(path, age)
    assert newest_last([*sorted(paths), tmp_path / "vanished.npz"]) == paths


@pytest.mark.usefixtures("threads")
def test_a_task_that_has_no_frames_left_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    record(tmp_path, 1000, INSTRUCTIONS[0])
    store = FrameStore([tmp_path], capacity=8, device=CPU, processes=1)
    store.refresh(wait=True)
    for seed in range(1001, 1004):
        record(tmp_path, seed, INSTRUCTIONS[1])
        store.refresh(wait=True)
    store.close()
    (line,) = caplog.messages
    assert f"no frames are left of {INSTRUCTIONS[0]!r}" in line
    assert "capacity, which is 8" in line


@pytest.mark.usefixtures("threads")
def test_what_cannot_be_read_is_left_out_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    record(tmp_path, 1000, INSTRUCTIONS[0])
    (tmp_path / "broken.npz").write_bytes(b"PK")
    store = FrameStore([tmp_path], capacity=100, device=CPU, processes=1)
    assert store.refresh(wait=True) == 4
    half = record(tmp_path, 1001, INSTRUCTIONS[0])
    half.write_bytes(half.read_bytes()[:-200])
    np.savez(tmp_path / "other.npz", meta="[]")
    record(tmp_path, 1002, INSTRUCTIONS[0])
    assert store.refresh(wait=True) == 4
    assert store.refresh(wait=True) == 0
    store.close()
    assert store.episodes == 2
    assert set(store.unreadable) == {tmp_path / "broken.npz", half, tmp_path / "other.npz"}
    assert len(caplog.messages) == 3
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert "broken.npz is left out, it cannot be read" in caplog.messages[0]


def test_decoders_stay_when_the_group_is_interrupted_and_end_with_training(tmp_path: Path):
    """As a terminal and torchrun do it: they send signals to every process of the group."""
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        record(tmp_path / str(number), 1000 + number, INSTRUCTIONS[0])
    # Standard output is closed when the last process has ended, and only then does `run` return.
    command = [sys.executable, "-c", _TRAINING, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, start_new_session=True)
    assert (ended.stdout.split(), ended.returncode) == (["4", "4"], -signal.SIGKILL), ended.stderr
