"""Small arrays on their way to the device without anybody waiting for them. Knows nothing of what they hold."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device | str) -> Tensor:
    """A copy on the device, in the order of its stream.

    A GPU reads pinned memory by itself while the host goes on. With ordinary memory the host would first wait for all
    that the GPU still has to do.
    """
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else host.to(device)
