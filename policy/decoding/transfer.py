"""Small arrays on their way between host and device. Knows nothing of what they hold.

A GPU reads and writes pinned memory by itself, while the host goes on. With ordinary memory the host would first wait
for all that the GPU still has to do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device | str) -> Tensor:
    """A copy on the device, in the order of its stream."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else host.to(device)


class Upload:
    """Brings arrays of recurring shapes to a device, each over pinned memory of its own: pinning anew takes up to half
    a millisecond. What was brought last must have arrived before the next of its shape is given.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._places: dict[tuple[tuple[int, ...], torch.dtype], Tensor] = {}

    def __call__(self, array: np.ndarray) -> Tensor:
        """A copy on the device, in the order of its stream."""
        given = torch.from_numpy(array)
        place = self._places.get((array.shape, given.dtype))
        if place is None:
            place = shared_memory(array.shape, given.dtype, self._device)
            self._places[array.shape, given.dtype] = place
        place.copy_(given)
        return place.to(self._device, non_blocking=True, copy=True)


def shared_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros on the host that the device can copy from and to at any time, also in a recorded function."""
    return torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")


def mark(device: torch.device, patient: bool = False) -> Callable[[], None]:
    """What waits until the device has done all that its stream was given so far, so that what it wrote can be read.

    patient: leave the processor to others meanwhile. Waiting for a batch of many clients, some of which simulate on the
    same machine, takes a core of it else; looking again and again notices the end some ten microseconds earlier.
    """
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event(blocking=patient)
    event.record(torch.cuda.current_stream(device))
    return event.synchronize
