"""A network arranged for inference computes what the plain one does."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from policy.acceleration.float8 import CAPABILITY, Float8Linear, check_hardware, quantise_rows
from policy.acceleration.patches import PatchProduct
from policy.acceleration.plan import AS_LOADED, Acceleration, accelerate, preset
from policy.acceleration.rows import LARGEST
from policy.benchmark.passes import random_model
from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.cache import StaticCache
from policy.decoding.capture import capture_passes
from policy.decoding.prompt_batch import PromptBatch
from policy.openvla.config import OpenVLAConfig
from policy.openvla.model import OpenVLA
from policy.openvla.vision import PatchEmbedding


def arranged(model: OpenVLA, plan: Acceleration = Acceleration()) -> OpenVLA:  # noqa: B008 (frozen)
    model = copy.deepcopy(model)
    accelerate(model, plan)
    return model


def inputs(model: OpenVLA, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A tree pass: embeddings `[2, 9, width]`, positions that repeat, and a mask without order."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(2, 9, model.config.language.width, generator=generator).to(model.dtype)
    positions = torch.tensor([0, 1, 2, 3, 3, 4, 4, 5, 5]).expand(2, -1)
    mask = torch.rand(2, 1, 9, 12, generator=generator) < 0.4
    mask[..., 0] = True
    return embeddings, positions, mask


def tree_pass(model: OpenVLA, seed: int = 0) -> tuple[Tensor, StaticCache]:
    embeddings, positions, mask = inputs(model, seed)
    cache = StaticCache(model.config.language, 2, 12, "cpu", model.dtype)
    slots = torch.tensor([0, 1, 2, 3, 5, 6, 8, 9, 11]).expand(2, -1)
    return model.language_model(embeddings, positions, cache, slots, mask), cache


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_layers_compute_the_same(small_model: OpenVLA, dtype: torch.dtype) -> None:
    plain = copy.deepcopy(small_model).to(dtype)
    (want, filled), (got, written) = tree_pass(plain), tree_pass(arranged(plain))
    # One unit in the last place: a wider matrix product may sum in another order.
    tolerance = 1e-5 if dtype == torch.float32 else 0.04
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(written.keys, filled.keys, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(written.values, filled.values, rtol=tolerance, atol=tolerance)


@torch.inference_mode()
@pytest.mark.parametrize(("width", "dtype"), [(64, torch.float32), (96, torch.bfloat16)])
def test_patches_by_a_product_are_those_of_the_convolution(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    embedding = PatchEmbedding(width).to(dtype)
    pixels = torch.randn(2, 3, 224, 224).to(dtype)
    want, got = embedding(pixels), PatchProduct(embedding)(pixels)
    assert got.shape == (2, 256, width)
    torch.testing.assert_close(got, want, rtol=1e-4 if dtype == torch.float32 else 0.02, atol=1e-5)


@torch.inference_mode()
def test_without_a_cache_attention_is_causal_in_the_order_given(small_model: OpenVLA) -> None:
    embeddings, positions, _ = inputs(small_model)
    want = small_model.language_model(embeddings, positions)
    torch.testing.assert_close(arranged(small_model).language_model(embeddings, positions), want, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_decoding_gives_the_same_tokens(small_model: OpenVLA) -> None:
    pixels = torch.randn(2, 6, 224, 224, generator=torch.Generator().manual_seed(1))

    def tokens(model: OpenVLA) -> list[list[int]]:
        prompts = PromptBatch.embed(model, [[1, 4, 5], [1, 7, 3, 9, 11]], model.image_features(pixels))
        return [step.tokens.tolist() for step in AutoregressiveDecoder(model).steps(prompts)]

    want = tokens(small_model)
    assert len({tuple(step) for step in want}) > 1
    for plan in (Acceleration(), Acceleration(attention="math")):
        assert tokens(arranged(small_model, plan)) == want


@torch.inference_mode()
def test_layers_can_be_compiled_whole_and_open_in_length(small_model: OpenVLA, monkeypatch) -> None:
    """Traced by the compiler's front end and run without its code generator: no graph break, no new trace a layer."""
    traces = []

    def run(graph: torch.fx.GraphModule, examples: list[Tensor]) -> object:
        traces.append(graph)
        return graph.forward

    compile_plainly = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, fullgraph, dynamic, mode: compile_plainly(
            function, backend=run, fullgraph=fullgraph, dynamic=dynamic
        ),
    )
    torch._dynamo.reset()
    model = arranged(small_model, Acceleration(compiled=True))
    for length in (9, 5, 7):
        embeddings, positions, _ = inputs(small_model)
        given = embeddings[:, :length].contiguous(), positions[:, :length]
        want = small_model.language_model(*given)
        torch.testing.assert_close(model.language_model(*given), want, rtol=1e-5, atol=1e-5)
    assert len(traces) == 1
    pixels = torch.randn(1, 6, 224, 224, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.image_features(pixels), small_model.image_features(pixels), rtol=1e-4, atol=1e-4)
    assert len(traces) == 3, "one for each kind of tower"
    pair = torch.cat([pixels, pixels.flip(-1)])
    torch.testing.assert_close(model.image_features(pair), small_model.image_features(pair), rtol=1e-4, atol=1e-4)
    assert len(traces) == 3, "batches go without"
    torch._dynamo.reset()


def test_measures_that_need_joined_layers_say_so() -> None:
    for change in ({"compiled": True}, {"attention": "math"}, {"kernels": "skinny"}, {"precision": "int8"}):
        with pytest.raises(ValueError, match="need joined projections"):
            replace(AS_LOADED, **change)
    with pytest.raises(ValueError, match="set compiled, too"):
        Acceleration(tuned=True)
    with pytest.raises(ValueError, match="'fp4'; it must be one of full, int8, fp8"):
        Acceleration(precision="fp4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'fast'; it must be one of none, joined, compiled, skinny, int8, fp8"):
        preset("fast")


def test_rows_are_rounded_to_eight_bits_by_their_own_scale() -> None:
    x = torch.tensor([[448.0, -1.0, 0.3, 0.0], [0.001, 0.002, -0.004, 0.0], [0.0, 0.0, 0.0, 0.0]])
    numbers, scale = quantise_rows(x)
    assert numbers.dtype == torch.float8_e4m3fn
    assert numbers.float().abs().amax(dim=1).tolist() == [LARGEST, LARGEST, 0.0]
    # Three mantissa bits: off by at most 1/16 of a number that is not too small.
    torch.testing.assert_close(numbers.float() * scale, x, rtol=1 / 16, atol=1e-6)


def test_an_eight_bit_product_is_near_and_exact_where_numbers_fit() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 32, bias=False)
    x = torch.randn(3, 5, 64)
    error = (Float8Linear(layer)(x) - layer(x)).norm() / layer(x).norm()
    assert 1e-3 < error < 0.05
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-16, 17, (32, 64)).float())
        layer.weight[:, 0] = 448.0
    whole = torch.randint(-16, 17, (4, 64)).float()
    whole[:, 1] = -448.0
    assert torch.equal(Float8Linear(layer)(whole), layer(whole)), "these are such numbers"


@torch.inference_mode()
def test_eight_bits_in_all_layers_stay_near(small_model: OpenVLA) -> None:
    (want, _), (got, _) = tree_pass(small_model), tree_pass(arranged(small_model, Acceleration(precision="fp8")))
    error = (got - want).norm() / want.norm()
    assert 1e-3 < error < 0.2


@torch.inference_mode()
def test_eight_bit_weights_alone_stay_several_times_nearer(small_model: OpenVLA) -> None:
    want, _ = tree_pass(small_model)
    int8, fp8 = (tree_pass(arranged(small_model, Acceleration(precision=p)))[0] for p in ("int8", "fp8"))
    assert 0 < (int8 - want).norm() < (fp8 - want).norm() / 2


def test_eight_bit_products_refuse_what_hardware_cannot_do(monkeypatch) -> None:
    with pytest.raises(ValueError, match="multiples of 16, got a weight 24x32"):
        Float8Linear(nn.Linear(32, 24, bias=False))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    with pytest.raises(ValueError, match=r"8\.9 or later .* and A100 has 8\.0; use the precision 'full'"):
        check_hardware(torch.device("cuda"))
    check_hardware(torch.device("cpu"))


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def gpu_model(config: OpenVLAConfig) -> OpenVLA:
    torch.manual_seed(0)
    return random_model(config, torch.device("cuda"), torch.bfloat16)


def greedy_on_gpu(model: OpenVLA) -> list[Tensor]:
    """Logits of the seven steps for one picture."""
    pixels = torch.randn(1, 6, 224, 224, generator=torch.Generator().manual_seed(1)).to("cuda")
    prompts = PromptBatch.embed(model, [[1, 4, 5]], model.image_features(pixels))
    return [step.logits for step in AutoregressiveDecoder(model).steps(prompts)]


@needs_gpu
@torch.inference_mode()
@pytest.mark.parametrize(
    "plan",
    [
        Acceleration(),
        Acceleration(attention="math"),
        Acceleration(compiled=True),
        Acceleration(kernels="skinny"),
        Acceleration(compiled=True, kernels="skinny"),
        Acceleration(precision="int8"),
        Acceleration(kernels="skinny", precision="fp8"),
    ],
    ids=["joined", "math", "compiled", "skinny", "skinny compiled", "int8", "fp8"],
)
def test_graphs_of_an_arranged_network_on_a_gpu(small_config: OpenVLAConfig, plan: Acceleration) -> None:
    """Twice, so that graphs are first recorded and then replayed; the first step, before near-ties can part ways."""
    want = greedy_on_gpu(gpu_model(small_config))[0]
    model = gpu_model(small_config)
    accelerate(model, plan)
    capture_passes(model)
    for _ in range(2):
        got = greedy_on_gpu(model)[0]
        assert (got - want).norm() / want.norm() < (0.1 if plan.precision == "fp8" else 0.02)


@needs_gpu
@torch.inference_mode()
def test_eight_bit_hardware_multiplies_as_the_simulation_does() -> None:
    if torch.cuda.get_device_capability() < CAPABILITY:
        pytest.skip("this GPU has no 8-bit products")
    torch.manual_seed(0)
    layer = nn.Linear(512, 256, bias=False).bfloat16()
    for rows in (1, 7, 40, 300):
        x = torch.randn(1, rows, 512).bfloat16()
        simulated, found = Float8Linear(layer)(x), Float8Linear(copy.deepcopy(layer).cuda())(x.cuda()).cpu()
        error = (found.float() - simulated.float()).norm() / simulated.float().norm()
        assert error < 5e-3, f"{rows} rows"
