"""A checkpoint comes to life as a policy, in order, and is refused where it cannot be one."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_openvla import INSTRUCTIONS, statistics_json

from policy import hardware, runtime
from policy.acceleration.plan import Acceleration
from policy.decoding.config import DecodingConfig
from policy.openvla.checkpoint import CheckpointError, checkpoint_hash
from policy.openvla.device_pixels import DevicePixels
from policy.openvla.images import PreprocessorSettings
from policy.runtime import Policy, SelfTestError
from policy.types import ActionPolicy, DeviceLostError, Observation


@pytest.fixture(scope="module")
def policy(small_checkpoint: Path) -> Policy:
    return Policy.load(small_checkpoint, device="cpu", dtype="float32")


@pytest.fixture
def copied(small_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_checkpoint, tmp_path / "copy"))


def observations() -> list[Observation]:
    noise = np.random.default_rng(0)
    return [
        Observation(noise.integers(0, 256, (256, 256, 3), dtype=np.uint8), instruction)
        for instruction in (*INSTRUCTIONS, INSTRUCTIONS[0])
    ]


def test_spec_says_what_was_loaded(policy: Policy, small_checkpoint: Path) -> None:
    spec = policy.spec
    assert isinstance(policy, ActionPolicy)
    assert spec.checkpoint_hash == checkpoint_hash(small_checkpoint)
    assert (spec.unnorm_key, spec.image_path, spec.control_hz) == ("libero_test", "libero", 20.0)
    assert (spec.device, spec.dtype, spec.decoder) == ("cpu", "float32", "autoregressive")
    assert spec.prompt_template == "In: What action should the robot take to {instruction}?\nOut:"
    assert spec.versions["torch"] == torch.__version__


def test_states_come_in_order(small_checkpoint: Path) -> None:
    states: list[str] = []
    Policy.load(small_checkpoint, device="cpu", dtype="float32", on_state=states.append)
    assert states == ["loading", "warming", "testing", "ready"]


def test_batch_gives_the_actions_of_single_frames(policy: Policy) -> None:
    batch = policy.act_batch(observations(), ["a", "b", "c"])
    for action, observation in zip(batch, observations(), strict=True):
        alone = policy.act(observation)
        assert action.tokens.tolist() == alone.tokens.tolist()
        assert np.array_equal(action.values, alone.values)
    assert batch[0].tokens.tolist() != batch[2].tokens.tolist()


def test_action_is_the_unnormalised_tokens(policy: Policy, small_checkpoint: Path) -> None:
    action = policy.act(observations()[0])
    config = json.loads((small_checkpoint / "config.json").read_text())
    size = config["text_config"]["vocab_size"] - 64
    edges = np.linspace(-1, 1, 256)
    bins = np.clip(size - action.tokens - 1, 0, 254)
    expected = (edges[:-1] + edges[1:])[bins] / 2
    expected[:6] *= np.linspace(0.5, 1.0, 7)[:6]  # the data set's q99 = -q01; its mask leaves the gripper out
    np.testing.assert_allclose(action.values, expected, atol=1e-6)
    assert action.values.dtype == np.float32


def test_trace_times_every_stage(policy: Policy) -> None:
    stage_ms = policy.act(observations()[0]).trace.stage_ms
    assert list(stage_ms) == ["preprocess", "vision", "prefill", "decode", "postprocess"]
    assert all(milliseconds > 0 for milliseconds in stage_ms.values())


def test_image_path_follows_the_statistics_unless_said(copied: Path) -> None:
    (copied / "dataset_statistics.json").write_text(json.dumps(statistics_json("bridge_orig")))
    bridge = Policy.load(copied, device="cpu", dtype="float32")
    assert (bridge.spec.image_path, bridge.spec.control_hz) == ("processor", 5.0)
    assert Policy.load(copied, device="cpu", dtype="float32", image_path="libero").spec.image_path == "libero"


def test_unknown_key_is_refused_before_the_weights_are_read(copied: Path) -> None:
    (copied / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(ValueError, match=r"'libero_gaol'.*libero_test"):
        Policy.load(copied, unnorm_key="libero_gaol", device="cpu")


def test_statistics_of_another_robot_are_refused(copied: Path) -> None:
    statistics = statistics_json("two_arms")
    action = statistics["two_arms"]["action"]
    statistics["two_arms"]["action"] = {name: values * 2 for name, values in action.items()}
    (copied / "dataset_statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(ValueError, match="'two_arms' have 14 action dimensions, but this policy acts in 7"):
        Policy.load(copied, device="cpu")


def test_adapter_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(CheckpointError, match="LoRA adapter: merge it"):
        Policy.load(tmp_path)


def test_model_that_ignores_its_image_is_refused(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    tensors["projector.fc3.weight"].zero_()
    save_file(tensors, copied / "model.safetensors")
    with pytest.raises(SelfTestError, match="same logits for a black and a white frame"):
        Policy.load(copied, device="cpu", dtype="float32")


def test_model_with_infinite_logits_is_refused(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    tensors["language_model.lm_head.weight"][7] = torch.nan
    save_file(tensors, copied / "model.safetensors")
    with pytest.raises(SelfTestError, match=r"2 of .* logits are not finite in float32"):
        Policy.load(copied, device="cpu", dtype="float32")


def test_batches_need_a_session_each(policy: Policy) -> None:
    with pytest.raises(ValueError, match="one session per observation, got 3 and 1"):
        policy.act_batch(observations(), ["a"])
    with pytest.raises(ValueError, match="got 0 and 0"):
        policy.act_batch([], [])


def test_closed_policy_acts_no_more(small_checkpoint: Path) -> None:
    policy = Policy.load(small_checkpoint, device="cpu", dtype="float32")
    policy.close()
    policy.close()
    with pytest.raises(RuntimeError, match="policy is closed"):
        policy.act(observations()[0])


def test_a_closed_policy_lets_go_of_its_model_at_once(small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one may not fit beside it; garbage is seldom collected while little else is made."""
    returned: list[str] = []
    monkeypatch.setattr(runtime, "return_freed_memory", lambda device: returned.append(str(device)))
    policy = Policy.load(small_checkpoint, device="cpu", dtype="float32", decoding=DecodingConfig.load("exact"))
    policy.act(observations()[0])
    model = weakref.ref(policy._running_decoder().model)
    policy.close()
    assert model() is None
    assert returned == ["cpu"]


def test_an_error_that_no_action_survives_is_told_from_one_that_is_over(policy: Policy, monkeypatch) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(policy, "_act_batch", failing)
    with pytest.raises(RuntimeError, match="illegal memory access") as once:
        policy.act(observations()[0])
    assert not isinstance(once.value, DeviceLostError)
    monkeypatch.setattr(runtime, "is_lost", lambda device: True)
    with pytest.raises(DeviceLostError, match="cpu has failed for good: CUDA error: an illegal memory access"):
        policy.act(observations()[0])


def test_keeping_float32_leaves_what_training_asks_of_matrix_products() -> None:
    """PyTorch refuses to tell its precision, and to compile, where it was asked for in two ways that differ."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        hardware.keep_float32()
        assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


def test_a_gpu_is_lost_when_it_cannot_even_wait(monkeypatch) -> None:
    def failing(device: torch.device) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    gpu = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert not hardware.is_lost(gpu)
    monkeypatch.setattr(torch.cuda, "synchronize", failing)
    assert hardware.is_lost(gpu)
    assert not hardware.is_lost(torch.device("cpu"))


def test_hardware_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert hardware.choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(hardware, "_cpu_multiplies_bfloat16", lambda fast=fast: fast)
        assert hardware.choose_dtype("auto", cpu) == expected
    assert hardware.choose_dtype("float32", cpu) == torch.float32
    with pytest.raises(ValueError, match="'float8'"):
        hardware.choose_dtype("float8", cpu)
    with pytest.raises(ValueError, match="'tpu'"):
        hardware.choose_device("tpu")
    with pytest.raises(ValueError, match="CUDA devices are visible"):
        hardware.choose_device("cuda:63")


def test_a_chosen_gpu_is_where_streams_and_graphs_go(monkeypatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("cpu", "cuda", "cuda:3"):
        assert str(hardware.choose_device(name)) == name
    assert chosen == [torch.device("cuda:3")]


def test_a_limit_on_gpu_memory_is_a_share_of_what_there_is(monkeypatch) -> None:
    gpu, shares = torch.device("cuda:1"), []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80e9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: shares.append(given))
    hardware.limit_memory(gpu, 20.0)
    hardware.limit_memory(torch.device("cuda"), 20.0)  # as `choose_device("auto")` gives it
    assert shares == [(0.25, 1), (0.25, 2)]  # PyTorch takes no device without an index here
    for limit in (0.0, -1.0, 81.0, float("nan")):
        with pytest.raises(ValueError, match=r"above 0 and at most the GPU's 80\.0 GB, got"):
            hardware.limit_memory(gpu, limit)
    with pytest.raises(ValueError, match="a limit of 20 GB is for a GPU's memory, and the device is cpu; leave it out"):
        hardware.limit_memory(torch.device("cpu"), 20.0)
    assert len(shares) == 2


def test_freed_memory_is_given_back_by_gpus_only(monkeypatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(None))
    hardware.return_freed_memory(torch.device("cpu"))
    assert not calls
    hardware.return_freed_memory(torch.device("cuda"))
    assert len(calls) == 1


def test_a_rehearsal_changes_nothing(policy: Policy) -> None:
    before = policy.act(observations()[0])
    policy.rehearse()
    assert policy.act(observations()[0]).tokens.tolist() == before.tokens.tolist()


def test_an_arranged_network_acts_the_same(policy: Policy, small_checkpoint: Path) -> None:
    arranged = Policy.load(small_checkpoint, device="cpu", dtype="float32", acceleration=Acceleration())
    for observation in observations():
        assert arranged.act(observation).tokens.tolist() == policy.act(observation).tokens.tolist()


def test_a_policy_in_eight_bits_says_so_wherever_it_is_named(small_checkpoint: Path) -> None:
    float8 = Policy.load(small_checkpoint, device="cpu", dtype="float32", acceleration=Acceleration(precision="fp8"))
    assert float8.spec.dtype == "float32, fp8 layers"


def test_pictures_may_be_made_on_the_device_if_they_are_the_hosts(policy: Policy, monkeypatch) -> None:
    settings, device = PreprocessorSettings(), torch.device("cpu")
    made = runtime._device_pixels(settings, device, None)
    assert made is not None
    want = [policy.act(observation).tokens.tolist() for observation in observations()]
    monkeypatch.setattr(policy, "_device_pixels", made)
    assert [policy.act(observation).tokens.tolist() for observation in observations()] == want
    monkeypatch.setattr(runtime, "DevicePixels", lambda *given: lambda frames: DevicePixels(*given)(frames) + 1e-6)
    with pytest.warns(UserWarning, match="differ from the host's"):
        assert runtime._device_pixels(settings, device, None) is None
