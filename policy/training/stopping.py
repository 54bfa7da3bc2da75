"""How training is stopped from outside: once, and it saves what there is; twice, and it ends. Knows no training."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Stoppable(Protocol):
    stopping: bool


@contextmanager
def stopped_by_signals(training: Stoppable) -> Iterator[None]:
    """Within, Ctrl-C or SIGTERM lets `training` end early and save; a second one ends the process at once. Only on the
    main thread.
    """
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in signals]

    def stop(*_: object) -> None:
        training.stopping = True
        for number in signals:
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
