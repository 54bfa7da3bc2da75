"""Training is stopped by Ctrl-C and SIGTERM, once to save, twice to end."""

import signal
import subprocess
import sys

import pytest

from policy.results import REPOSITORY

_RUN = """
import os, sys
from types import SimpleNamespace
from policy.training.stopping import stopped_by_signals
first, times = int(sys.argv[1]), int(sys.argv[2])
training = SimpleNamespace(stopping=False)
with stopped_by_signals(training):
    for _ in range(times):
        os.kill(os.getpid(), first)
    print("saved", training.stopping, flush=True)
os.kill(os.getpid(), first)
print("never here", flush=True)
"""


def heeding_signals() -> None:
    """For a process to be: it would else ignore what this one ignores, as behind nohup or in a shell's background."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_and_the_second_one_ends(number: signal.Signals):
    def run(times: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _RUN, str(int(number)), str(times)]
        return subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, preexec_fn=heeding_signals
        )

    once, twice = run(1), run(2)
    assert once.stdout == "saved True\n", once.stderr
    assert once.returncode == -number, "afterwards signals do what they did before"
    assert (twice.stdout, twice.returncode) == ("", -number)
