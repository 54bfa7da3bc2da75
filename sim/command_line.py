"""What all commands that run episodes have in common: options, and how they end.

Knows names of options and the errors that a user can do something about. Does not know what is evaluated.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from bridge.errors import BridgeError
from sim.episode_worker import WorkerSetupError
from sim.served_checkpoint import ServedCheckpoint
from sim.video import VideoUnavailableError

LOGGER = logging.getLogger(__name__)


def add_server_options(parser: ArgumentParser, checkpoint: str = "policy/pretrained/libero") -> None:
    """What is served, and how. checkpoint: unless another is given."""
    options = parser.add_argument_group("policy servers")
    options.add_argument("--checkpoint", type=str, default=checkpoint, help="directory or hub id")
    options.add_argument("--unnorm-key", type=str | None, default=None, help="dataset statistics")
    options.add_argument("--dtype", type=str, default="auto", help="auto, float32 or bfloat16")
    options.add_argument("--capture", type=bool, default=True, help="replay forward passes as CUDA graphs")
    options.add_argument("--acceleration", type=str, default="none", help="none, joined, compiled, skinny, int8 or fp8")
    options.add_argument(
        "--servers", type=int, default=1, help="server processes at a time; one is good for some ten workers"
    )
    options.add_argument("--devices", nargs="+", type=str, default=["auto"], help="servers take turns, e.g. cuda:0")


def add_pool_options(parser: ArgumentParser) -> None:
    """Who runs episodes, and for how long."""
    options = parser.add_argument_group("simulators")
    options.add_argument("--workers", type=int, default=1, help="simulator processes, one per core")
    options.add_argument(
        "--render-devices", nargs="+", type=int, default=[], help="EGL devices that the workers take turns on"
    )
    options.add_argument("--time-limit", type=float, default=1e9, help="seconds after which no episode starts")


def served_checkpoint(chosen: Namespace) -> ServedCheckpoint:
    """What `add_server_options` is about. Raises ValueError for a checkpoint that is none."""
    return ServedCheckpoint.locate(
        chosen.checkpoint,
        chosen.unnorm_key,
        chosen.devices,
        dtype=chosen.dtype,
        capture=chosen.capture,
        acceleration=chosen.acceleration,
    )


@contextmanager
def plain_ending(doing: str, goes_on_from: Path) -> Iterator[None]:
    """Ends the process with a sentence where the user can help, and never without its servers and simulators."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, lambda number, _: sys.exit(128 + number))  # by default child processes would go on
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; run the same command again to go on from {goes_on_from}") from None
    except OSError as error:  # a full disk, a file that may not be written
        LOGGER.debug("cannot %s", doing, exc_info=True)
        what = f"{error.strerror or error} ({error.filename or goes_on_from})"
        raise SystemExit(
            f"cannot {doing}: {what}; mend that, then run the same command again to go on from {goes_on_from}"
        ) from None
    except (ValueError, WorkerSetupError, VideoUnavailableError, BridgeError) as error:
        raise SystemExit(f"cannot {doing}: {error}") from None
