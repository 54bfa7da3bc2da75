"""What a control step must compute and move at least, and how long a machine takes for it at its own best rates.

Knows arithmetic on sizes. Knows nothing of how a step is run.

A multiplication and an addition are two operations. A pass over few tokens is bound by reading the weights once, one
over a whole prompt by its matrix products; the larger of both times is the bound (Williams et al. 2009, "Roofline").
Norms, softmax, copies and everything on the host are left out, so no implementation reaches it.
"""

from __future__ import annotations

from dataclasses import dataclass

from policy.acceleration.plan import Precision
from policy.openvla.config import ACTION_DIMENSIONS, PATCH_SIDE, PATCHES, LanguageConfig, OpenVLAConfig, TowerConfig


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates measured on a device: bytes per second of a copy (read and written both count) and operations per second of
    a large matrix product, in the model's dtype and in 8 bits (None where it has no such hardware).
    """

    bytes_per_second: float
    operations_per_second: float
    float8_operations_per_second: float | None = None

    def milliseconds(self, work: Work, float8: bool = False) -> float:
        """The least time for this work; the rate is the 8-bit one where asked for and known."""
        rate = (float8 and self.float8_operations_per_second) or self.operations_per_second
        return 1e3 * max(work.operations / rate, work.bytes / self.bytes_per_second)


@dataclass(frozen=True, slots=True)
class Work:
    """Operations to compute and bytes to read."""

    operations: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class StepCost:
    """Of one action at batch 1. prompt: tokens of the prompt, patches included. weight_bytes: of a number in the
    model's dtype. precision: of the language model's layers; both 8-bit ones are read in half the time, and "fp8" is
    multiplied faster, too.
    """

    config: OpenVLAConfig
    prompt: int
    weight_bytes: int = 2
    precision: Precision = "full"

    def vision(self) -> Work:
        """Both towers and the projector."""
        config = self.config
        towers = [_tower(tower, self.weight_bytes) for tower in (config.dinov2, config.siglip)]
        width = config.language.width
        weights = config.vision_width * config.projector_hidden + config.projector_hidden * width + width * width
        return towers[0] + towers[1] + Work(2 * PATCHES * weights, weights * self.weight_bytes)

    def language(self, rows: int) -> Work:
        """One pass of `rows` new tokens behind what is cached, and the head for one of them."""
        text = self.config.language
        layers, head = layer_weights(text) * text.layers, text.vocabulary * text.width
        keys = max(self.prompt, rows)
        attention = 4 * rows * keys * text.heads * text.head_size * text.layers
        size = self.weight_bytes if self.precision == "full" else 1
        return Work(2 * rows * layers + attention + 2 * head, layers * size + head * self.weight_bytes)

    def bound_ms(self, machine: Machine, passes: float = ACTION_DIMENSIONS) -> float:
        """Least milliseconds of an action of so many passes: vision, the prompt's pass, and single-token passes."""
        first = machine.milliseconds(self.language(self.prompt), self.precision == "fp8")
        further = machine.milliseconds(self.language(1), self.precision == "fp8")
        return machine.milliseconds(self.vision()) + first + (passes - 1) * further


def layer_weights(text: LanguageConfig) -> int:
    """Numbers in the matrices of one layer."""
    queries, keys = text.heads * text.head_size, text.key_value_heads * text.head_size
    return text.width * (2 * queries + 2 * keys + 3 * text.mlp)


def _tower(tower: TowerConfig, weight_bytes: int) -> Work:
    tokens = PATCHES + (1 + tower.registers if tower.kind == "dinov2" else 0)
    blocks = tower.blocks - 1  # the last is stored and not computed
    weights = blocks * tower.width * (4 * tower.width + 2 * tower.mlp)
    patches = 3 * PATCH_SIDE**2 * tower.width
    attention = 4 * tokens**2 * tower.width * blocks
    return Work(2 * tokens * weights + 2 * PATCHES * patches + attention, (weights + patches) * weight_bytes)
