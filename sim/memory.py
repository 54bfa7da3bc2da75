"""What a process has freed, given back to the machine, where many simulators share its memory."""

from __future__ import annotations

import ctypes


def give_back_freed_memory() -> None:
    """Compiling a scene frees hundreds of megabytes that the C library would keep for later; does nothing but on
    glibc, whose `malloc_trim` gives them back.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
