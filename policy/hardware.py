"""Which device and number format a policy runs with when nobody says.

Knows what this machine offers. Knows nothing of models.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(name: str = "auto") -> torch.device:
    """The named device, or the first CUDA device, else the CPU; a CUDA device is made this thread's current one, where
    streams, graphs and kernels go that name none.

    Raises ValueError for one that is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")  # the current one already
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} is not here: {torch.cuda.device_count()} CUDA devices are visible; use 'cpu' or 'auto'"
        )
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def current(device: torch.device) -> AbstractContextManager[None]:
    """Makes a CUDA device the current one for a while, in a thread that did not choose it."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The named dtype, or bfloat16 where the device multiplies matrices in it, else float32.

    The published checkpoints are bfloat16, so nothing is lost by it; on a CPU without such instructions it is many
    times slower.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" or _cpu_multiplies_bfloat16() else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype must be 'auto' or one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def _cpu_multiplies_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
