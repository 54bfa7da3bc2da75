"""Forward passes alone, for every way to arrange the network: which switch buys what.

Knows how to time a pass. The weights are random, as zeros, of which a widened network is full, multiply faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from policy.acceleration.plan import AS_LOADED, Acceleration, accelerate
from policy.benchmark.cost import Machine, StepCost
from policy.benchmark.machine import median_ms
from policy.decoding.cache import StaticCache
from policy.decoding.capture import capture_passes
from policy.openvla.config import ACTION_BINS, IMAGE_SIDE, OpenVLAConfig
from policy.openvla.model import OpenVLA

# Decided tokens and the smallest tree, which is what most further passes read.
SHORT_PASS = 14
TREE_NODES = 32
_DEVIATION = 0.02

ARRANGEMENTS: dict[str, tuple[Acceleration, bool]] = {
    "as loaded, eager": (AS_LOADED, False),
    "as loaded, graphs": (AS_LOADED, True),
    "joined": (Acceleration(parallel_towers=False), True),
    "joined, towers at once": (Acceleration(), True),
    "joined, math attention": (Acceleration(attention="math"), True),
    "joined, cudnn attention": (Acceleration(attention="cudnn"), True),
    "compiled": (Acceleration(compiled=True), True),
    "compiled, towers in turn": (Acceleration(compiled=True, parallel_towers=False), True),
    "compiled, math attention": (Acceleration(compiled=True, attention="math"), True),
    "compiled, cudnn attention": (Acceleration(compiled=True, attention="cudnn"), True),
    "compiled, tuned": (Acceleration(compiled=True, tuned=True), True),
    "skinny": (Acceleration(kernels="skinny"), True),
    "skinny, compiled": (Acceleration(compiled=True, kernels="skinny"), True),
    "int8": (Acceleration(kernels="skinny", precision="int8"), True),
    "int8, compiled": (Acceleration(compiled=True, kernels="skinny", precision="int8"), True),
    "fp8": (Acceleration(precision="fp8"), True),
    "fp8, compiled": (Acceleration(compiled=True, precision="fp8"), True),
    "fp8, skinny": (Acceleration(compiled=True, kernels="skinny", precision="fp8"), True),
}
"""By name, the arrangement and whether passes are replayed as graphs on a GPU."""


def random_model(config: OpenVLAConfig, device: torch.device, dtype: torch.dtype) -> OpenVLA:
    """A network of these sizes with random weights, made on the device in its dtype."""
    model = OpenVLA.from_config(config, device="meta", dtype=dtype).to_empty(device=device)
    for parameter in model.parameters():
        parameter.data.normal_(std=_DEVIATION)
    return model.eval()


@torch.inference_mode()
def measure_passes(
    config: OpenVLAConfig, prompt: int, name: str, machine: Machine, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Milliseconds of vision, of the prompt's pass without and with a tree, of passes of 14 tokens and of one, and of
    the head alone for a tree: all its rows, and those of actions only.

    prompt: tokens, patches included. An arrangement that this machine cannot run gives a row with its error.
    """
    plan, capture = ARRANGEMENTS[name]
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    try:
        model = random_model(config, device, dtype)
        accelerate(model, plan)
        if capture and device.type == "cuda":
            capture_passes(model)
        pixels = torch.randn(1, 6, IMAGE_SIDE, IMAGE_SIDE, device=device, dtype=dtype)
        cache = StaticCache(config.language, 1, prompt + TREE_NODES + SHORT_PASS, device, dtype)
        in_a_row = 10 if device.type == "cuda" else 1
        times = {"vision": median_ms(lambda: model.image_features(pixels), device, in_a_row=in_a_row)}
        for stage, rows in _pass_rows(prompt).items():
            work = _pass(model, cache, rows, 0 if rows >= prompt else prompt)
            times[stage] = median_ms(work, device, in_a_row=in_a_row)
        heads = _heads(model)
        times |= {stage: median_ms(work, device, in_a_row=in_a_row) for stage, work in heads.items()}
    except Exception as error:  # compilers and kernels fail in many ways; the next arrangement may work
        return {"arrangement": name, "error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    cost = StepCost(config, prompt, dtype.itemsize, plan.precision)
    bounds = {"vision": machine.milliseconds(cost.vision())} | {
        stage: machine.milliseconds(cost.language(rows), plan.precision == "fp8")
        for stage, rows in _pass_rows(prompt).items()
    }
    row: dict[str, Any] = {"arrangement": name} | {f"{stage}_ms": milliseconds for stage, milliseconds in times.items()}
    row |= {f"{stage}_percent_of_bound": 100 * bounds[stage] / times[stage] for stage in bounds}
    memory = torch.cuda.max_memory_reserved(device) / 1e9 if device.type == "cuda" else None
    return row | {"total_s": time.perf_counter() - began, "memory_gb": memory}


def _heads(model: OpenVLA) -> dict[str, Callable[[], Tensor]]:
    """What the head costs for a tree's nodes, to tell what leaving out words could save at most."""
    weight = model.language_model.lm_head.weight
    hidden = torch.randn(1 + TREE_NODES, weight.shape[1], device=model.device, dtype=model.dtype)
    end = model.config.action_vocabulary
    actions = weight[end - ACTION_BINS : end]
    return {"head": lambda: hidden @ weight.t(), "action_head": lambda: hidden @ actions.t()}


def _pass_rows(prompt: int) -> dict[str, int]:
    return {"prefill": prompt, "prefill_tree": prompt + TREE_NODES, "short_pass": SHORT_PASS, "one_token": 1}


def _pass(model: OpenVLA, cache: StaticCache, rows: int, start: int) -> Callable[[], Tensor]:
    """A pass of `rows` tokens from the slot `start` on, up to the logits of the last one."""
    embeddings = torch.randn(1, rows, model.config.language.width, device=model.device, dtype=model.dtype)
    slots = torch.arange(start, start + rows, device=model.device)[None]
    mask = cache.causal_mask(slots)
    return lambda: model.logits(model.language_model(embeddings, slots, cache, slots, mask)[:, -1])
