"""The rates of the device at hand, measured with PyTorch's own copy and matrix product.

Knows how to time work on a device. Knows nothing of models.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from policy.acceleration.float8 import CAPABILITY, quantise_rows
from policy.benchmark.cost import Machine


@dataclass(frozen=True, slots=True)
class Workload:
    """How large the copy (bytes) and the matrices (rows and columns) are; large enough to fill the device."""

    copied_bytes: int
    side: int

    @classmethod
    def of(cls, device: torch.device) -> Workload:
        """Several times what caches hold, in some milliseconds."""
        return cls(2 << 30, 8192) if device.type == "cuda" else cls(64 << 20, 1024)


@torch.inference_mode()
def measure_machine(device: torch.device, dtype: torch.dtype, workload: Workload | None = None) -> Machine:
    """Rates of a copy within the device's memory and of matrix products of random numbers (zeros would flatter)."""
    work = workload or Workload.of(device)
    return Machine(_copy_rate(work.copied_bytes, device), *_product_rates(work.side, device, dtype))


def _copy_rate(size: int, device: torch.device) -> float:
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2e3 * size / median_ms(lambda: target.copy_(source), device)


def _product_rates(side: int, device: torch.device, dtype: torch.dtype) -> tuple[float, float | None]:
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    operations = 2e3 * side**3
    rate = operations / median_ms(lambda: left @ right.t(), device)
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY or dtype != torch.bfloat16:
        return rate, None
    (numbers, scale), (others, other_scale) = quantise_rows(left), quantise_rows(right)

    def product() -> Tensor:
        return torch._scaled_mm(
            numbers, others.t(), scale_a=scale, scale_b=other_scale.t(), out_dtype=dtype, use_fast_accum=True
        )

    return rate, operations / median_ms(product, device)


def median_ms(work: Callable[[], object], device: torch.device, repeats: int = 20, in_a_row: int = 1) -> float:
    """Median milliseconds of `work`, timed by events on a GPU; in_a_row: runs between two events, so that the host's
    part is hidden behind the device's as far as it can be.
    """
    for _ in range(3):
        work()
    found = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(device)
            start.record()
            for _ in range(in_a_row):
                work()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) / in_a_row)
        else:
            began = time.perf_counter()
            for _ in range(in_a_row):
                work()
            found.append(1e3 * (time.perf_counter() - began) / in_a_row)
    return statistics.median(found)
