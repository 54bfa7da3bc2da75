"""Collecting demonstrations: order, resuming, failures, time limits, and workers that die."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import pytest

import sim.collection
from policy.training.demonstrations import demonstration_name, list_demonstrations
from sim.collection import FAILURES_FILE, CollectionConfig, collect
from sim.driving import Stretches
from sim.recording_worker import CollectionError, Outcome, Recording, RecordingWorker
from sim.schedule import BalancedSchedule, Item, TaskKey

KEYS = [TaskKey("libero_spatial", task) for task in range(3)]


class InstantWorker:
    """Stands in for a recording process: every episode is done at once, and stored unless `results` says otherwise."""

    results: dict[Item, str] = {}  # noqa: RUF012  (set by the tests)
    recorded: list[Item] = []  # noqa: RUF012
    endpoints: dict[Item, str] = {}  # noqa: RUF012

    def __init__(self, recording: Recording) -> None:
        self._output = recording.output
        self.connection, self._other_end = Pipe()

    def assign(self, item: Item | None, driver_endpoint: str = "") -> bool:
        if item is None:
            return False
        self.endpoints[item] = driver_endpoint
        self._item = item
        self._other_end.send(item)
        return True

    def outcome(self) -> Outcome:
        item = self.connection.recv()
        self.recorded.append(item)
        result = self.results.get(item, "stored")
        if result == "stored":
            (self._output / demonstration_name(*item.key, item.seed)).touch()
        return Outcome(*item.key, item.seed, result, steps=10, solved=result == "stored")

    def close(self) -> None:
        self.connection.close()


@pytest.fixture
def instant(monkeypatch):
    monkeypatch.setattr(sim.collection, "RecordingWorker", InstantWorker)
    monkeypatch.setattr(InstantWorker, "results", {})
    monkeypatch.setattr(InstantWorker, "recorded", [])
    monkeypatch.setattr(InstantWorker, "endpoints", {})
    return InstantWorker


@pytest.fixture
def config(tmp_path) -> CollectionConfig:
    return CollectionConfig(tmp_path / "demos", ("libero_spatial",), (0, 1), episodes=4)


def test_tasks_progress_evenly_and_workers_stay():
    schedule = BalancedSchedule(Item(key, seed) for key in KEYS for seed in range(1000, 1030))
    current, done, changes = None, dict.fromkeys(KEYS, 0), 0
    while (item := schedule.next(current)) is not None:
        changes += item.key != current
        current = item.key
        done[current] += 1
        assert max(done.values()) - min(done.values()) <= 7
    assert done == dict.fromkeys(KEYS, 30)
    assert changes <= 16, "about six episodes between two builds of a simulator"


def test_several_workers_start_on_different_tasks():
    schedule = BalancedSchedule(Item(key, seed) for key in KEYS for seed in range(1000, 1030))
    assert {schedule.next(None).key for _ in KEYS} == set(KEYS)


def test_resuming_begins_with_the_task_that_is_behind():
    schedule = BalancedSchedule([Item(KEYS[0], 1009), *(Item(KEYS[1], seed) for seed in range(1000, 1010))])
    assert [schedule.next(None).key for _ in range(3)] == [KEYS[1]] * 3


def test_everything_is_recorded_once_and_then_skipped(instant, config):
    first = collect(config)
    assert (first.skipped, first.remaining, first.frames) == (0, 0, 80)
    assert first.successes == {"libero_spatial": 8}
    assert sorted(instant.recorded) == sorted(config.items())
    second = collect(config)
    assert (second.skipped, second.attempts) == (8, {})
    third = collect(replace(config, episodes=5))
    assert (third.skipped, third.attempts) == (8, {"libero_spatial": 2})
    assert len(list_demonstrations(config.output)) == 10


def test_failures_are_counted_and_only_errors_are_tried_again(instant, config):
    unsolved, error = Item(KEYS[0], 1001), Item(KEYS[1], 1002)
    instant.results = {unsolved: "unsolved", error: "error"}
    first = collect(config)
    assert (first.attempts, first.errors) == ({"libero_spatial": 7}, 1)
    assert first.successes == {"libero_spatial": 6}
    assert "7 episodes, 0 to go" in str(first)
    assert str(first).endswith("libero_spatial 6/7; 1 errors, to be repeated")
    lines = [json.loads(line) for line in (config.output / FAILURES_FILE).read_text().splitlines()]
    assert {(line["task"], line["seed"], line["result"]) for line in lines} == {
        (0, 1001, "unsolved"),
        (1, 1002, "error"),
    }
    instant.recorded.clear()
    collect(config)
    assert instant.recorded == [error]


def test_a_task_that_fails_gets_more_episodes():
    schedule = BalancedSchedule((Item(key, seed) for key in KEYS for seed in range(1000, 1200)), emphasis=3.0)
    current, done = None, dict.fromkeys(KEYS, 0)
    for _ in range(240):
        current = schedule.next(current).key
        done[current] += 1
        schedule.report(current, solved=current != KEYS[1])
    assert done[KEYS[1]] > 2 * done[KEYS[0]] > 60
    assert abs(done[KEYS[0]] - done[KEYS[2]]) <= 7


def test_servers_that_drive_may_change_and_the_expert_keeps_its_share(instant, config):
    many, endpoints = replace(config, episodes=50, expert_share=0.3), iter(f"tcp://here:{port}" for port in range(999))
    collect(many, driver_endpoint=lambda: next(endpoints))
    named = list(instant.endpoints.values())
    alone = [item for item in many.items() if many.expert_alone(item)]
    assert 15 < len(alone) < 45
    assert all((instant.endpoints[item] == "") == (item in alone) for item in many.items())
    assert len(set(named)) == 1 + 100 - len(alone), "asked anew for every episode"


def test_a_collection_can_be_told_that_it_is_finished(instant, config):
    summary = collect(config, finished=lambda: len(instant.recorded) >= 3)
    assert 3 <= sum(summary.attempts.values()) <= 4, "episodes that end at the same time are still counted"


def test_after_the_time_limit_no_episode_starts(instant, config):
    summary = collect(replace(config, time_limit=1e-9, workers=3))
    assert sum(summary.attempts.values()) == 3
    assert summary.remaining == 5


def test_progress_is_told_after_every_episode(instant, config):
    seen = []
    collect(config, lambda summary: seen.append(summary.remaining))
    assert seen == [7, 6, 5, 4, 3, 2, 1, 0]


def test_workers_are_told_how_long_a_policy_drives_on_end(config):
    driven = replace(config, driver_endpoint="tcp://127.0.0.1:1", stretch=90.0)
    assert driven.recording(0).stretches == Stretches(policy=90.0)
    assert replace(driven, driver_alone=True).recording(0).stretches is None


@pytest.mark.parametrize(
    "change",
    [
        {"first_seed": 0},
        {"first_seed": 999},
        {"suites": ()},
        {"episodes": 0},
        {"workers": 0},
        {"noise": -0.1},
        {"noisy_fraction": 1.1},
        {"time_limit": -1.0},
        {"expert_share": 1.5},
        {"driver_alone": True},
        {"stretch": 0.5},
        {"emphasis": -1.0},
    ],
)
def test_impossible_wishes_are_refused(config, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(config, **change)


def test_a_worker_that_dies_is_replaced_until_it_is_hopeless(tmp_path):
    worker = RecordingWorker(Recording(tmp_path, noise=0.0, noisy_fraction=0.0))
    try:
        for _ in range(2):
            worker.assign(Item(KEYS[0], 1000))
            os.kill(worker._process.pid, signal.SIGKILL)
            outcome = worker.outcome()
            assert (outcome.result, outcome.detail) == ("error", "the recording process died with exit code -9")
        worker.assign(Item(KEYS[0], 1000))
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(CollectionError, match="3 times in a row"):
            worker.outcome()
    finally:
        worker.close()


@pytest.mark.libero
def test_a_simulator_that_cannot_be_built_ends_the_collection(tmp_path):
    worker = RecordingWorker(Recording(tmp_path, noise=0.0, noisy_fraction=0.0))
    try:
        worker.assign(Item(TaskKey("no_such_suite", 0), 1000))
        with pytest.raises(CollectionError, match="no_such_suite task 0 cannot be recorded: UnknownSuiteError"):
            worker.outcome()
    finally:
        worker.close()


def test_a_policy_server_that_cannot_be_reached_ends_the_collection(tmp_path):
    worker = RecordingWorker(Recording(tmp_path, noise=0.0, noisy_fraction=0.0))
    try:
        worker.assign(Item(KEYS[0], 1000), "5555")
        with pytest.raises(CollectionError, match="cannot be recorded: ValueError: '5555' is not an endpoint"):
            worker.outcome()
    finally:
        worker.close()


def test_the_command_line_refuses_evaluation_seeds_and_unreadable_tasks(tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "collect_demos.py"
    for arguments, complaint in (
        (["--first-seed", "3"], "first_seed must be at least 1000, got 3"),
        (["--tasks", "1-"], "neither a number nor a range"),
    ):
        command = [sys.executable, str(script), "--output", str(tmp_path), *arguments]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert run.returncode == 2
        assert complaint in run.stderr


def test_workers_take_render_devices_and_meshes_in_turn(tmp_path: Path):
    config = CollectionConfig(tmp_path, render_devices=(2, 3, 3), mesh_cells=(0.0, 0.003))
    made = [config.recording(worker) for worker in range(4)]
    assert [recording.render_device for recording in made] == [2, 3, 3, 2]
    assert [recording.mesh_cell for recording in made] == [0.0, 0.003, 0.0, 0.003]
    plain = CollectionConfig(tmp_path).recording(5)
    assert (plain.render_device, plain.mesh_cell) == (None, 0.0)
    with pytest.raises(ValueError, match="must not be negative"):
        CollectionConfig(tmp_path, mesh_cells=(-0.1,))
