"""Runs a script that ends with the process which started it, however that ends: python -m bridge.lifeline SCRIPT ...

Standard input is the lifeline: a pipe whose other end only the parent holds, so that its death closes it. Linux's own
parent-death signal would not do: it comes when the *thread* ends that started the child. Knows nothing of what it runs.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

# A script that has not ended so long after it was asked to, in seconds, is killed.
PATIENCE_S = 20.0


def watch(descriptor: int) -> threading.Thread:
    """Ends this process once the other end of a pipe is closed, by SIGTERM first, in a thread of its own."""
    thread = threading.Thread(target=_end_with, args=(descriptor,), name="lifeline", daemon=True)
    thread.start()
    return thread


def _end_with(descriptor: int) -> None:
    while os.read(descriptor, 4096):
        pass  # whatever may be written there
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_S)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    del sys.argv[0]  # the script sees its own arguments only
    watch(sys.stdin.fileno())
    runpy.run_path(sys.argv[0], run_name="__main__")
