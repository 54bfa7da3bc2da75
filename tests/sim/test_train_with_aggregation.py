"""However `scripts/train_with_aggregation.py` is stopped, training is stopped once and has the time to save."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from policy.results import REPOSITORY

# Stands for training: tells what signals it gets, and takes its time to save after the first one.
_TRAINER = """
import signal, sys, time
from pathlib import Path
told = Path(sys.argv[1])
def stop(number, _):
    with told.open("a") as file:
        file.write(f"{signal.Signals(number).name} ")
    if told.read_text().count("SIG") > 1:
        sys.exit(1)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, stop)
told.write_text("ready ")
for _ in range(600):
    time.sleep(0.05)
    if "SIG" in told.read_text():
        time.sleep(float(sys.argv[2]))
        told.write_text(told.read_text() + "saved")
        break
"""

_AGGREGATION = """
import sys, time
sys.path.insert(0, "scripts")
import train_with_aggregation as script
script.train_command = lambda chosen: [sys.executable, "-c", {trainer!r}, {told!r}, {seconds!r}]
script.collect = lambda *_: time.sleep(60)
sys.argv[1:] = ["--run", {run!r}]
sys.exit(script.main())
"""


def heeding_signals() -> None:
    """For a process to be: it would else ignore what this one ignores, as behind nohup or in a shell's background."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def started(folder: Path, seconds: float) -> tuple["subprocess.Popen[str]", Path]:
    """The script in a process group of its own, as a terminal's; and what its trainer tells, which is ready."""
    told = folder / "told"
    code = _AGGREGATION.format(trainer=_TRAINER, told=str(told), seconds=str(seconds), run=str(folder))
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, start_new_session=True, preexec_fn=heeding_signals
    )
    deadline = time.monotonic() + 30
    while not (told.is_file() and "ready" in told.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process, told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_whole_group_stops_training_once(tmp_path: Path, number: signal.Signals):
    process, told = started(tmp_path, 0.5)
    os.killpg(process.pid, number)
    assert process.wait(30) == 128 + number
    assert told.read_text() == "ready SIGTERM saved"


def test_training_is_stopped_even_if_the_script_is_killed_at_once(tmp_path: Path):
    """As `subprocess.run` does on Ctrl-C, a quarter of a second later."""
    process, told = started(tmp_path, 0.5)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.25)
    process.kill()
    process.wait(30)
    deadline = time.monotonic() + 20
    while "saved" not in told.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert told.read_text() == "ready SIGTERM saved"


def test_the_second_signal_ends_training_at_once(tmp_path: Path):
    process, told = started(tmp_path, 20.0)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(30)
    time.sleep(0.5)
    assert told.read_text() == "ready SIGTERM SIGTERM "
    assert time.monotonic() - began < 10
