"""How many threads a worker process may use: one, since there is a process per core already."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# Simulators are single-threaded; numpy's thread pools would only make the processes fight over the cores.
_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def single_threaded_children() -> Iterator[None]:
    """Sets the thread variables that the user has left open, for processes started meanwhile."""
    added = [name for name in _VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
