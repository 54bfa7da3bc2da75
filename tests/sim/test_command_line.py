import os
import signal
import time
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from policy.results import REPOSITORY
from sim.command_line import add_pool_options, add_server_options, plain_ending, served_checkpoint
from sim.episode_worker import WorkerSetupError

RUNS = Path("runs")


@pytest.fixture
def handlers():
    """Puts signal handlers back after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_options_make_a_served_checkpoint():
    parser = ArgumentParser()
    add_server_options(parser, str(REPOSITORY / "policy" / "pretrained" / "libero"))
    add_pool_options(parser)
    given = ["--devices", "cuda:0", "cuda:1", "--capture", "false", "--acceleration", "joined", "--workers", "3"]
    chosen = parser.parse_args(given)
    served = served_checkpoint(chosen)
    assert [served.devices.take() for _ in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert (served.capture, served.acceleration, served.dtype) == (False, "joined", "auto")
    assert (chosen.workers, chosen.servers, chosen.render_devices) == (3, 1, [])
    with pytest.raises(ValueError, match="nowhere"):
        served_checkpoint(parser.parse_args(["--checkpoint", "nowhere"]))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyboardInterrupt(), "stopped; run the same command again to go on from runs"),
        (ValueError("no such suite"), "cannot look: no such suite"),
        (WorkerSetupError("no GL"), "cannot look: no GL"),
        (
            OSError(28, "No space left on device"),
            r"cannot look: No space left on device \(runs\); mend that",
        ),
        (
            PermissionError(13, "Permission denied", "runs/x"),
            r"denied \(runs/x\); .* the same command again",
        ),
        (OSError("flush failed"), r"cannot look: flush failed \(runs\);"),
    ],
)
def test_a_command_ends_with_a_sentence(error, told, handlers):
    with pytest.raises(SystemExit, match=told), plain_ending("look", RUNS):
        raise error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_terminated_still_ends_what_it_has_started(number, handlers):
    ended = []

    def command() -> None:
        with plain_ending("look", RUNS):
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            finally:
                ended.append("servers")

    signal.signal(number, lambda *_: None)
    with pytest.raises(SystemExit, match=str(128 + number)):
        command()
    assert ended == ["servers"]


def test_a_command_under_nohup_goes_on_when_its_terminal_is_closed(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with plain_ending("look", RUNS):
        os.kill(os.getpid(), signal.SIGHUP)
