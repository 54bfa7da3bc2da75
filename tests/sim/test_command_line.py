import os
import signal
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from policy.results import REPOSITORY
from sim.command_line import add_pool_options, add_server_options, plain_ending, served_checkpoint
from sim.episode_worker import WorkerSetupError

RUNS = Path("runs")


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
    ],
)
def test_a_command_ends_with_a_sentence(error, told):
    with pytest.raises(SystemExit, match=told), plain_ending("look", RUNS):
        raise error


def test_a_command_that_is_terminated_still_ends_what_it_has_started():
    ended = []

    def command() -> None:
        with plain_ending("look", RUNS):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                signal.pause()
            finally:
                ended.append("servers")

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match="143"):
            command()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == ["servers"]
