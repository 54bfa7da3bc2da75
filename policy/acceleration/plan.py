"""How a loaded network is arranged for inference: each measure a switch, and what all do together.

Knows which measures there are and in which order they go. Knows nothing of how tokens are chosen; graphs are a matter
of `policy.decoding.capture`, which comes after.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from policy.acceleration.float8 import Float8Linear, check_hardware
from policy.acceleration.fused_language import FusedLanguageModel, FusedLayer
from policy.acceleration.int8 import Int8Linear
from policy.acceleration.patches import PatchProduct
from policy.acceleration.rows import check_kernels
from policy.hardware import return_freed_memory
from policy.openvla.model import OpenVLA
from policy.openvla.vision import VisionBackbone

Precision = Literal["full", "int8", "fp8"]
Kernels = Literal["torch", "skinny"]
Attention = Literal["auto", "math", "efficient", "cudnn"]

_BACKENDS = {
    "auto": None,
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
# Each number of tokens that a layer is compiled for counts; with sizes left open, one and "several" are all.
_COMPILED_VARIANTS = 32


@dataclass(frozen=True, slots=True)
class Acceleration:
    """Measures that leave the function as it is, up to rounding; all but the precision.

    joined: joined projections in the language model, patches by a matrix product in the towers. parallel_towers:
    both vision towers at once, on a GPU. compiled: torch.compile for the blocks of towers and language model; the
    first pass takes a minute then. tuned: also try kernels for every matrix product, for each length anew; only for
    passes whose lengths are few. attention: the language model's kernel, PyTorch's choice unless named. kernels:
    "skinny" for kernels of our own in the language model, on a GPU: between products, and in passes of few tokens
    for products and attention, too; its layers are not compiled then. precision: of the language model's layers;
    "int8" for weights of 8 bits, which always takes kernels of our own; "fp8" for products of 8-bit
    floating-point numbers, inputs rounded, too. What changes the language model's layers needs them joined.
    """

    joined: bool = True
    parallel_towers: bool = True
    compiled: bool = False
    tuned: bool = False
    attention: Attention = "auto"
    kernels: Kernels = "torch"
    precision: Precision = "full"

    def __post_init__(self) -> None:
        for name, kind in (("attention", Attention), ("kernels", Kernels), ("precision", Precision)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(kind))}")
        if self.tuned and not self.compiled:
            raise ValueError("kernels are tuned by the compiler; set compiled, too")
        chosen = (self.attention, self.kernels, self.precision)
        if not self.joined and (self.compiled or chosen != ("auto", "torch", "full")):
            raise ValueError("compiled layers, other kernels and 8 bits need joined projections; leave joined true")


AS_LOADED = Acceleration(joined=False, parallel_towers=False)
PRESETS = {
    "none": AS_LOADED,
    "joined": Acceleration(),
    "compiled": Acceleration(compiled=True),
    "skinny": Acceleration(compiled=True, kernels="skinny"),
    "int8": Acceleration(compiled=True, kernels="skinny", precision="int8"),
    "fp8": Acceleration(compiled=True, kernels="skinny", precision="fp8"),
}


def preset(name: str) -> Acceleration:
    """Measures by the name of a command line. Raises ValueError for one that is not there."""
    if name not in PRESETS:
        raise ValueError(f"there is no acceleration {name!r}; it must be one of {', '.join(PRESETS)}")
    return PRESETS[name]


def fastest(device: torch.device) -> str:
    """The name of what does most on a device, the same numbers up to rounding; on a CPU everything stays as loaded."""
    if device.type != "cuda":
        return "none"
    try:
        check_kernels(device)
    except ValueError:
        return "compiled"
    return "skinny"


def accelerate(model: OpenVLA, plan: Acceleration) -> None:
    """Arrange the model in place, for inference only; before graphs are recorded.

    Raises ValueError for kernels and a precision that the model's device or sizes do not allow.
    """
    if plan.precision == "fp8":
        check_hardware(model.device)
    own_kernels = plan.kernels == "skinny" or plan.precision == "int8"
    if own_kernels:
        check_kernels(model.device)
    own_kernels = own_kernels and model.dtype != torch.float32  # which they would multiply with fewer bits
    if plan.joined:
        model.language_model = FusedLanguageModel(model.language_model, _BACKENDS[plan.attention], own_kernels)
        for tower in (model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer):
            setattr(tower, "patch_embed", PatchProduct(tower.patch_embed))  # noqa: B010
    if plan.precision != "full":
        for layer in model.language_model.model.layers:
            _replace_products(layer, {"int8": Int8Linear, "fp8": Float8Linear}[plan.precision])
            return_freed_memory(model.device)
    if plan.parallel_towers and model.device.type == "cuda":
        _run_towers_at_once(model.vision_backbone)
    if plan.compiled:
        _compile_blocks(model, plan.tuned)


def _replace_products(layer: nn.Module, kind: Callable[[nn.Linear], nn.Module]) -> None:
    for name, child in list(layer.named_children()):
        if isinstance(child, nn.Linear):
            setattr(layer, name, kind(child))


def _run_towers_at_once(backbone: VisionBackbone) -> None:
    """SigLIP on a stream of its own beside DINOv2; in a graph, two branches. One tower alone leaves half of a large GPU
    idle at batch 1.
    """
    beside = torch.cuda.Stream()

    def forward(pixel_values: Tensor) -> Tensor:
        dinov2, siglip = pixel_values.split(3, dim=1)
        here = torch.cuda.current_stream()
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            second = backbone.fused_featurizer(siglip)
        first = backbone.featurizer(dinov2)
        # Memory of either stream is used again by that stream only, and each waits for the other once an image.
        here.wait_stream(beside)
        return torch.cat([first, second], dim=2)

    # As with `module.forward = torch.compile(module.forward)`: callers need not know.
    setattr(backbone, "forward", forward)  # noqa: B010


def _compile_blocks(model: OpenVLA, tuned: bool) -> None:
    """One compiled block serves all blocks of its kind, at all lengths: lengths are left open unless tuned for, since a
    new instruction must not stall a robot while its length is compiled.
    """
    mode = "max-autotune-no-cudagraphs" if tuned else "default"
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _COMPILED_VARIANTS)
    for layer in model.language_model.model.layers:
        if isinstance(layer, FusedLayer) and not (layer.own_kernels and model.device.type == "cuda"):
            layer.compile(fullgraph=True, dynamic=not tuned, mode=mode)
    for tower in (model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer):
        for block in tower.blocks:
            _compile_for_one(block, mode)


def _compile_for_one(block: nn.Module, mode: str) -> None:
    """Code for one frame is worth compiling; batches of other sizes, which come and go with clients, must not wait for
    a compiler.
    """
    plain = block.forward
    alone = torch.compile(plain, fullgraph=True, dynamic=False, mode=mode)
    setattr(block, "forward", lambda x: alone(x) if len(x) == 1 else plain(x))  # noqa: B010
