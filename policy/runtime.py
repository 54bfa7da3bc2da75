"""The policy: an OpenVLA checkpoint that turns a camera frame and an instruction into an action.

Knows the order in which a policy comes to life (`Policy.load`) and the stages of an action (`Policy.act_batch`). Knows
nothing of sockets, simulators or of how any stage works inside.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar, cast

import numpy as np
import torch

from policy.acceleration.plan import AS_LOADED, Acceleration, accelerate
from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.capture import GraphRecorder, Record, capture_passes, captured, recorded_batch
from policy.decoding.config import ActionDecoder, DecodingConfig
from policy.decoding.physical import controller_of
from policy.decoding.prompt_batch import PROMPT_LENGTHS, PromptBatch, Sight
from policy.decoding.stopwatch import Stopwatch
from policy.decoding.transfer import Upload, to_device
from policy.drafting.registry import DrafterMaterial
from policy.hardware import choose_device, choose_dtype, current, is_lost, keep_float32, return_freed_memory
from policy.openvla.action_tokens import ActionStatistics, ActionTokenizer, load_statistics, resolve_unnorm_key
from policy.openvla.checkpoint import checkpoint_hash, load_checkpoint, locate_checkpoint
from policy.openvla.config import ACTION_DIMENSIONS, IMAGE_SIDE
from policy.openvla.device_pixels import DevicePixels, uploaded
from policy.openvla.images import ImagePath, PreprocessorSettings, pixel_values, resolve_image_path
from policy.openvla.model import OpenVLA
from policy.openvla.prompt import Prompter
from policy.results import versions
from policy.types import Action, DeviceLostError, Observation, PolicySpec

_Row = TypeVar("_Row")

State = Literal["loading", "warming", "testing", "ready", "closed"]

_PROBE_INSTRUCTION = "pick up the object"
# Passes are recorded beforehand for prompts of its length and up to so many ids more.
_LONGER_PROMPTS = 24
_BEGINNING = 1  # an id that every vocabulary has
# LIBERO's demonstrations are recorded at 20 Hz, BridgeData V2 at 5 Hz; other datasets' rates are not in any checkpoint.
_CONTROL_HZ = {"libero": 20.0, "bridge": 5.0}


class SelfTestError(RuntimeError):
    """The loaded model cannot be a policy: its logits are not finite, or do not depend on the image."""


class Policy:
    """Satisfies `policy.types.ActionPolicy`. Not for several threads at once; several sessions share it through
    `act_batch`.
    """

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        unnorm_key: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        image_path: Literal["auto", "libero", "processor"] = "auto",
        decoding: DecodingConfig | None = None,
        capture: bool = True,
        acceleration: Acceleration = AS_LOADED,
        on_state: Callable[[State], None] | None = None,
    ) -> Policy:
        """Load, check, warm and test the policy of a checkpoint; what comes back is ready.

        checkpoint: a directory or a hub id. unnorm_key: dataset whose statistics scale the actions; may be left out
        where the checkpoint has one only. device, dtype: see `policy.hardware`. image_path: "libero" (rotate, JPEG,
        Lanczos, centre crop) or "processor" (resize only); "auto" takes the first for LIBERO statistics. decoding: how
        tokens are chosen, plainly unless given. capture: replay forward passes as CUDA graphs where there is a GPU; the
        first batch of a new size then takes some tenths of a second longer. acceleration: how the network is arranged,
        see docs/speed.md. on_state: told of each state as it begins.
        Raises CheckpointError, ValueError (unknown key, device or dtype), FileNotFoundError (no preprocessor settings)
        or SelfTestError.
        """
        report = on_state or (lambda state: None)
        report("loading")
        directory = locate_checkpoint(checkpoint)
        datasets = load_statistics(directory)  # what is quick to check comes before the weights
        key = resolve_unnorm_key(datasets, unnorm_key)
        statistics, image_path = datasets[key], resolve_image_path(image_path, key)
        settings = PreprocessorSettings.load(directory)
        controller = None if decoding is None else decoding.controller_or(controller_of(key))
        place = choose_device(device)
        number_format = choose_dtype(dtype, place)
        if number_format == torch.float32:
            keep_float32()
        model = load_checkpoint(directory, place, number_format)
        accelerate(model, acceleration)
        if capture and place.type == "cuda":
            capture_passes(model)
        prompter = Prompter(directory, maximum_tokens=model.config.maximum_tokens)
        spec = describe_policy(str(checkpoint), checkpoint_hash(directory), key, image_path, model, prompter)
        if acceleration.precision != "full":
            spec = replace(spec, dtype=f"{spec.dtype}, {acceleration.precision} layers")
        recorder = GraphRecorder if capture and place.type == "cuda" else None
        record = recorder() if recorder else None
        policy = cls(model, prompter, statistics, settings, spec, record, acceleration.compiled)
        if decoding is not None:
            material = DrafterMaterial(model, statistics, directory, recorder=recorder, controller=controller)
            policy.decode_with(decoding.build(material), decoding.digest)
        report("warming")
        policy.warm()
        if capture and place.type == "cuda":
            policy.rehearse()
        report("testing")
        policy.self_test()
        report("ready")
        return policy

    def __init__(
        self,
        model: OpenVLA,
        prompter: Prompter,
        statistics: ActionStatistics,
        settings: PreprocessorSettings,
        spec: PolicySpec,
        record: Record | None = None,
        compiled: bool = False,
    ) -> None:
        """Put a policy together from parts at hand, e.g. a model in training; neither warmed nor tested.

        record: how plain decoding and the arithmetic on pictures that a GPU does are recorded; they run launch by
        launch unless given. compiled: that arithmetic is compiled for the usual frame.
        Raises ValueError for statistics of another number of action dimensions than 7.
        """
        if len(statistics.q01) != ACTION_DIMENSIONS:
            raise ValueError(
                f"statistics {spec.unnorm_key!r} have {len(statistics.q01)} action dimensions, "
                f"but this policy acts in {ACTION_DIMENSIONS}; choose another unnorm_key"
            )
        self._prompter = prompter
        self._statistics = statistics
        self._settings = settings
        self._spec = spec
        self._action_tokenizer = ActionTokenizer(model.config.action_vocabulary)
        on_gpu = model.device.type == "cuda"
        self._device_pixels = _device_pixels(settings, model.device, record, compiled) if on_gpu else None
        self._upload = Upload(model.device)
        self._recorded = record is not None
        self._decoder: ActionDecoder | None = AutoregressiveDecoder(model, record)
        # On the host a frame costs some 3 ms; a batch from many clients must not pay that for each in turn.
        self._preprocessors = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="preprocess")

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    def reset(self, session: str = "") -> None:
        """A new episode of this session starts: forget whatever its last one left. A closed policy has nothing left."""
        if self._decoder is not None:
            self._decoder.forget(session)

    def decode_with(self, decoder: ActionDecoder, digest: str = "") -> None:
        """Decode by other means from now on; the spec tells which. digest: of the decoder's settings."""
        self._decoder = decoder
        self._spec = replace(self._spec, decoder=decoder.name, decoding_digest=digest)

    def renew(self, checkpoint: str | Path) -> None:
        """Take over the weights of a newer checkpoint of the same network. They go where the old ones are, so recorded
        passes stay valid.

        Raises CheckpointError, and ValueError for another network or an accelerated one, whose tensors are others.
        """
        directory, model = locate_checkpoint(checkpoint), self._running_decoder().model
        fresh = load_checkpoint(directory, model.device, model.dtype)
        try:
            model.load_state_dict(fresh.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{directory} cannot replace the weights of {self._spec.policy_id}: {error}") from error
        self._spec = replace(self._spec, checkpoint_hash=checkpoint_hash(directory))

    def act(self, observation: Observation, session: str = "") -> Action:
        """One action for one frame."""
        return self.act_batch([observation], [session])[0]

    @torch.inference_mode()
    def act_batch(self, observations: Sequence[Observation], sessions: Sequence[str]) -> list[Action]:
        """One action for each of several sessions, in one forward pass.

        The traces share the batch's milliseconds: preprocess, vision, prefill, decode, postprocess.
        Raises ValueError when there are not as many sessions as observations, or none, when a session is named twice or
        an instruction is too long, RuntimeError when the policy is closed, and DeviceLostError when the GPU has failed
        for good.
        """
        if len(observations) != len(sessions) or not observations:
            raise ValueError(f"need one session per observation, got {len(observations)} and {len(sessions)}")
        device = self._running_decoder().model.device
        try:
            with current(device):
                return self._act_batch(observations, sessions)
        except RuntimeError as error:
            if is_lost(device):
                raise DeviceLostError(f"{device} has failed for good: {error}") from error
            raise

    def _act_batch(self, observations: Sequence[Observation], sessions: Sequence[str]) -> list[Action]:
        decoder = self._running_decoder()
        model = decoder.model
        stopwatch = Stopwatch(model.device)
        rows = recorded_batch(len(observations)) if self._recorded else len(observations)
        instructions = _filled_up([observation.instruction for observation in observations], rows)
        prompts = [self._prompter.token_ids(instruction) for instruction in instructions]
        pixels = self._pixels([observation.image for observation in observations], rows)
        stopwatch.lap("preprocess")
        sight = Sight(pixels, tuple(instructions))
        decoder.look(sight)
        features = model.image_features(pixels)
        stopwatch.lap("vision")
        tokens, traces = decoder.decode(PromptBatch.embed(model, prompts, features, sight), sessions, stopwatch)
        ids = tokens.numpy()  # [sessions, 7]
        values = self._statistics.unnormalize(self._action_tokenizer.decode(ids)).astype(np.float32)
        stopwatch.lap("postprocess")
        return [
            Action(row, row_ids, replace(trace, stage_ms=stopwatch.stage_ms))
            for row, row_ids, trace in zip(values, ids, traces, strict=True)
        ]

    @torch.inference_mode()
    def rest(self) -> None:
        """Nobody waits for an action: learn from the last ones, which the next action would else do first."""
        self._running_decoder().study()

    def warm(self) -> None:
        """Run one action, so that the first real one does not pay for lazy initialisation."""
        self.act(Observation(_plain_frame(127), _PROBE_INSTRUCTION))
        self.reset()

    @torch.inference_mode()
    def rehearse(self) -> None:
        """Record all passes of one session for instructions of usual lengths, so that none stalls the robot later."""
        decoder = self._running_decoder()
        shortest = len(self._prompter.token_ids(_PROBE_INSTRUCTION))
        pixels = torch.zeros(1, 6, IMAGE_SIDE, IMAGE_SIDE, device=decoder.model.device)
        features = decoder.model.image_features(pixels)
        for length in range(shortest, shortest + _LONGER_PROMPTS + 1, PROMPT_LENGTHS):
            decoder.rehearse(PromptBatch.embed(decoder.model, [[_BEGINNING] * length], features))

    @torch.inference_mode()
    def self_test(self) -> None:
        """Raise SelfTestError when logits are not finite or do not change between a black and a white frame."""
        model = self._running_decoder().model
        pixels = self._pixels([_plain_frame(0), _plain_frame(255)], 2)
        prompts = [self._prompter.token_ids(_PROBE_INSTRUCTION)] * 2
        batch = PromptBatch.embed(model, prompts, model.image_features(pixels))
        logits = next(AutoregressiveDecoder(model).steps(batch)).logits  # [2, vocabulary]
        if not torch.isfinite(logits).all():
            bad = int((~torch.isfinite(logits)).sum())
            raise SelfTestError(
                f"{self._spec.policy_id}: {bad} of {logits.numel()} logits are not finite in {self._spec.dtype}; "
                "the weights are damaged, or need dtype 'float32'"
            )
        # Not exactly equal: nothing promises that a kernel treats both rows of a batch alike to the last bit.
        if (logits[0] - logits[1]).abs().max() <= 1e-6 * logits.abs().max():
            raise SelfTestError(
                f"{self._spec.policy_id}: the same logits for a black and a white frame: the model ignores its "
                "image; the vision weights are damaged or were never trained"
            )

    def close(self) -> None:
        """Let go of the model and its device memory; asking for an action afterwards raises RuntimeError."""
        if self._decoder is None:
            return
        device = self._decoder.model.device
        self._preprocessors.shutdown()
        self._decoder = self._device_pixels = None
        gc.collect()  # a model hangs in cycles of references, and the next one may not fit beside it
        return_freed_memory(device)

    def _running_decoder(self) -> ActionDecoder:
        if self._decoder is None:
            raise RuntimeError(f"policy is closed: {self._spec.policy_id}; load it again")
        return self._decoder

    def _pixels(self, images: Sequence[np.ndarray], rows: int) -> torch.Tensor:
        """Network input `[rows, 6, 224, 224]` on the device for camera frames, the last of them repeated."""
        path = cast(ImagePath, self._spec.image_path)
        if self._device_pixels is not None and path == "libero" and len({image.shape for image in images}) == 1:
            return self._device_pixels((self._upload(np.stack(_filled_up(self._each(uploaded, images), rows))),))
        pixels = self._each(lambda image: pixel_values(image, path, self._settings), images)
        return self._upload(np.stack(_filled_up(pixels, rows)))

    def _each(self, work: Callable[[np.ndarray], np.ndarray], images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Handing a single frame to another thread would only take longer."""
        return list(map(work, images) if len(images) == 1 else self._preprocessors.map(work, images))


def describe_policy(
    policy_id: str,
    digest: str,
    unnorm_key: str,
    image_path: Literal["auto", "libero", "processor"],
    model: OpenVLA,
    prompter: Prompter,
) -> PolicySpec:
    """The spec of a policy with a model as loaded; an `image_path` of "auto" is decided by the statistics' name."""
    rates = [rate for dataset, rate in _CONTROL_HZ.items() if unnorm_key.startswith(dataset)]
    return PolicySpec(
        policy_id=policy_id,
        checkpoint_hash=digest,
        unnorm_key=unnorm_key,
        image_size=(IMAGE_SIDE, IMAGE_SIDE),
        image_path=resolve_image_path(image_path, unnorm_key),
        prompt_template=prompter.template,
        control_hz=rates[0] if rates else 0.0,
        decoder=AutoregressiveDecoder.name,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        versions=versions(),
    )


@torch.inference_mode()
def _device_pixels(
    settings: PreprocessorSettings, device: torch.device, record: Record | None, compiled: bool = False
) -> Callable[..., torch.Tensor] | None:
    """The arithmetic on pictures on a device, or None (and a warning) where it does not give the host's very pixels."""
    frame = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    expected = pixel_values(frame, "libero", settings)
    plain = DevicePixels(settings, device)
    for way in (plain.compiled(), plain) if compiled else (plain,):
        pixels = captured(way, record)
        if np.array_equal(pixels((to_device(uploaded(frame)[None], device),))[0].cpu().numpy(), expected):
            return pixels
    warnings.warn(f"pictures made on {device} differ from the host's; the host makes them", stacklevel=2)
    return None


def _filled_up(rows: Sequence[_Row], count: int) -> list[_Row]:
    """So many rows, the last of them repeated."""
    return [*rows, *[rows[-1]] * (count - len(rows))]


def _plain_frame(level: int) -> np.ndarray:
    return np.full((256, 256, 3), level, np.uint8)
