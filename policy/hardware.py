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


def is_lost(device: torch.device) -> bool:
    """Whether a GPU answers nothing any more, as after an illegal access, a failed assertion or a fault of the card."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def limit_memory(device: torch.device, gigabytes: float) -> None:
    """Let PyTorch take at most so many GB (1e9 bytes) of a GPU, as if the card were smaller or shared: what needs more
    fails with `torch.OutOfMemoryError`. The driver's own share, about half a GB, comes on top.

    Raises ValueError for a device that is no GPU, and for a limit that is not positive or more than the GPU has.
    """
    if device.type != "cuda":
        raise ValueError(f"a limit of {gigabytes:g} GB is for a GPU's memory, and the device is {device}; leave it out")
    index = torch.cuda.current_device() if device.index is None else device.index
    total = torch.cuda.get_device_properties(index).total_memory / 1e9
    if not 0 < gigabytes <= total:
        raise ValueError(f"the limit must be above 0 and at most the GPU's {total:.1f} GB, got {gigabytes:g}")
    torch.cuda.set_per_process_memory_fraction(gigabytes / total, index)


def return_freed_memory(device: torch.device) -> None:
    """Give memory that PyTorch has let go of back to the GPU. What comes next can seldom use the pieces: when small
    matrices become one large one, a process would else hold on to the room of both.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()


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


def keep_float32() -> None:
    """Let no convolution round float32 to TF32 (10 bits of mantissa) on a GPU, as cuDNN does unless told otherwise;
    matrix products do so only where `torch.set_float32_matmul_precision` asks for it.
    """
    torch.backends.cudnn.allow_tf32 = False


def _cpu_multiplies_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def mixed_precision(device: torch.device) -> torch.autocast:
    """For training: bfloat16 on a GPU. Backwards it takes a CPU without instructions for it twenty times as long."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
