"""Comparisons that run the network: vision, greedy decoding, actions, training examples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.prompt_batch import PromptBatch
from policy.openvla.action_tokens import ActionStatistics, ActionTokenizer, DatasetStatistics, load_statistics
from policy.openvla.images import PreprocessorSettings, libero_frame, pixel_values, processor_pixel_values
from policy.openvla.model import OpenVLA
from policy.openvla.prompt import Prompter
from policy.parity.golden import Recording, Tolerances

END_OF_SEQUENCE = 2
IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class Subject:
    """What is compared: a model with the files of its checkpoint."""

    model: OpenVLA
    prompter: Prompter
    settings: PreprocessorSettings
    config_statistics: DatasetStatistics
    file_statistics: DatasetStatistics
    tolerances: Tolerances

    @classmethod
    def of(cls, model: OpenVLA, checkpoint: Path, config_file: Path, tolerances: Tolerances) -> Subject:
        """config_file: the one that `model` was loaded with, the checkpoint's own or a variant's."""
        config = json.loads(config_file.read_text(encoding="utf-8"))
        return cls(
            model=model,
            prompter=Prompter(checkpoint, maximum_tokens=model.config.maximum_tokens),
            settings=PreprocessorSettings.load(checkpoint),
            config_statistics=DatasetStatistics(config_file, config.get("norm_stats") or {}),
            file_statistics=load_statistics(checkpoint),
            tolerances=tolerances,
        )

    @property
    def action_tokenizer(self) -> ActionTokenizer:
        return ActionTokenizer(self.model.config.action_vocabulary)

    def pixels(self, values: np.ndarray) -> Tensor:
        """Network input `[1, 6, 224, 224]` in the model's dtype."""
        return torch.from_numpy(values)[None].to(self.model.device, self.model.dtype)

    def statistics(self, name: str) -> ActionStatistics:
        """Those that an array `actions_<name>` was un-normalised with. Raises ValueError where there are none."""
        key = name.removeprefix("dataset_statistics_")
        datasets = self.config_statistics if key == name else self.file_statistics
        if key not in datasets:
            raise ValueError(f"actions_{name} is recorded; the checkpoint has only statistics of {sorted(datasets)}")
        return datasets[key]


def check_vision(recording: Recording, subject: Subject) -> None:
    """Both towers, their concatenation and the projector, at the patches that were recorded."""
    backbone = subject.model.vision_backbone
    for number, image in recording.golden.images().items():
        rows = recording.array(f"rows_{number}")
        if rows is None:
            continue
        pixels = subject.pixels(processor_pixel_values(image, subject.settings))
        found = {
            "dinov2": backbone.featurizer(pixels[:, :3])[0, rows],
            "siglip": backbone.fused_featurizer(pixels[:, 3:])[0, rows],
            "concat": backbone(pixels)[0, rows[:4]],
            "projector": subject.model.image_features(pixels)[0, rows],
        }
        for name, features in found.items():
            recording.close(name, f"{name}_{number}", _numpy(features), subject.tolerances.features)


def check_prediction(recording: Recording, subject: Subject) -> None:
    """Greedy decoding of every recorded row of a `predict.npz`: ids, logits, hidden states, actions."""
    images, instructions = recording.array("images"), recording.array("instructions")
    if images is None or instructions is None:
        return
    features = {
        number: subject.model.image_features(subject.pixels(processor_pixel_values(image, subject.settings)))
        for number, image in recording.golden.images().items()
    }
    complete = recording.array("prefill_logits_rows")
    generated = []
    for row, (image, instruction) in enumerate(zip(images, instructions, strict=True)):
        ids = subject.prompter.token_ids(recording.golden.instructions[instruction])
        prompts = PromptBatch.embed(subject.model, [ids], features[int(image)])
        _compare_prompt(recording, subject, row, prompts)
        steps = _compare_steps(recording, subject, row, prompts)
        generated.append(steps.tokens)
        if complete is not None and row in complete:
            place = int(np.flatnonzero(complete == row)[0])
            recording.close("prefill logits", "prefill_logits", steps.logits[0], subject.tolerances.logits, place)
    _compare_actions(recording, subject, np.array(generated))


def check_libero_predictions(recording: Recording, subject: Subject) -> None:
    """The same for frames that went through the LIBERO image path, with and without its centre crop."""
    images, instructions = recording.array("images"), recording.array("instructions")
    cropped = recording.array("center_crop")
    if images is None or instructions is None or cropped is None:
        return
    frames, generated = recording.golden.images(), []
    for row, (image, instruction, crop) in enumerate(zip(images, instructions, cropped, strict=True)):
        frame = frames[int(image)]
        if crop:
            values = pixel_values(frame, "libero", subject.settings)
        else:
            values = processor_pixel_values(libero_frame(frame), subject.settings)
        ids = subject.prompter.token_ids(recording.golden.instructions[instruction])
        prompts = PromptBatch.embed(subject.model, [ids], subject.model.image_features(subject.pixels(values)))
        generated.append(_compare_steps(recording, subject, row, prompts).tokens)
    _compare_actions(recording, subject, np.array(generated))


def check_training_examples(recording: Recording, subject: Subject) -> None:
    """Sequence, labels, loss and label logits of one training example per instruction, all with image 0."""
    images, tolerances = recording.golden.images(), subject.tolerances
    for number, instruction in enumerate(recording.golden.instructions):
        action = recording.array(f"action_{number}")
        if action is None or 0 not in images:
            continue
        targets = [*subject.action_tokenizer.encode(action).tolist(), END_OF_SEQUENCE]
        ids = subject.prompter.token_ids(instruction) + targets
        labels = [IGNORED_LABEL] * (len(ids) - len(targets)) + targets
        recording.equal("input ids", f"input_ids_{number}", ids)
        recording.equal("labels", f"labels_{number}", labels)
        pixels = subject.pixels(processor_pixel_values(images[0], subject.settings))
        hidden = subject.model(pixels, torch.tensor([ids], device=subject.model.device))
        # The state before each label predicts it, so the last position predicts nothing.
        logits = subject.model.logits(hidden[0, -len(targets) - 1 : -1]).cpu()
        loss = functional.cross_entropy(logits, torch.tensor(targets))
        label_logits = logits.gather(1, torch.tensor(targets)[:, None])[:, 0]
        recording.close("loss", f"loss_{number}", _numpy(loss), tolerances.loss)
        recording.close("label logits", f"label_logits_{number}", _numpy(label_logits), tolerances.logits)


@dataclass(frozen=True, slots=True)
class Steps:
    """The seven greedy steps of one row: ids `[7]`, hidden states `[7, width]`, logits `[7, vocabulary]`."""

    tokens: np.ndarray
    hidden: np.ndarray
    logits: np.ndarray

    @classmethod
    def of(cls, model: OpenVLA, prompts: PromptBatch) -> Steps:
        steps = list(AutoregressiveDecoder(model).steps(prompts))
        return cls(
            tokens=_numpy(torch.cat([step.tokens for step in steps])),
            hidden=_numpy(torch.cat([step.hidden for step in steps])),
            logits=_numpy(torch.cat([step.logits for step in steps])),
        )


def _compare_prompt(recording: Recording, subject: Subject, row: int, prompts: PromptBatch) -> None:
    """Spliced embeddings, sequence length and the residual stream at the last prompt position."""
    embeddings, tolerances = prompts.embeddings[0, : prompts.lengths[0]], subject.tolerances
    recording.equal("sequence length", "sequence_length", len(embeddings), row)
    recording.close("embeddings", "embeddings_first", _numpy(embeddings[:3]), tolerances.features, row)
    recording.close("embeddings", "embeddings_last", _numpy(embeddings[-6:]), tolerances.features, row)
    name = "layer_outputs_last_position"
    if recording.array(name) is not None:
        recording.close("layer outputs", name, _layer_outputs(subject.model, prompts), tolerances.states, row)


def _compare_steps(recording: Recording, subject: Subject, row: int, prompts: PromptBatch) -> Steps:
    """Decode, and compare ids, hidden states and logits of the seven steps."""
    steps, tolerances = Steps.of(subject.model, prompts), subject.tolerances
    recording.equal("tokens", "generated_ids", steps.tokens, row)
    recording.close("hidden states", "final_hidden", steps.hidden, tolerances.states, row)
    from_first_action = steps.logits[:, subject.action_tokenizer.first_id :]
    recording.close("action logits", "action_range_logits", from_first_action, tolerances.logits, row)
    if (best_ids := recording.array("top5_ids")) is not None:
        # By value, not by id: places two to five may be near-ties. Once ours, once at the recorded ids.
        ours = -np.sort(-steps.logits, axis=1)[:, : best_ids.shape[2]]
        at_recorded = np.take_along_axis(steps.logits, best_ids[row], axis=1)
        recording.close("best logits", "top5_logits", ours, tolerances.logits, row)
        recording.close("best logits", "top5_logits", at_recorded, tolerances.logits, row)
    return steps


def _compare_actions(recording: Recording, subject: Subject, generated: np.ndarray) -> None:
    """Values in [-1, 1] and un-normalised actions of generated ids `[rows, 7]`, for every recorded data set."""
    normalized, tolerance = subject.action_tokenizer.decode(generated), subject.tolerances.actions
    recording.close("normalised actions", "normalized_actions", normalized, tolerance)
    for name in recording.golden.names(recording.file, "actions_"):
        actions = subject.statistics(name.removeprefix("actions_")).unnormalize(normalized)
        recording.close("actions", name, actions, tolerance)


def _layer_outputs(model: OpenVLA, prompts: PromptBatch) -> np.ndarray:
    """The embedding and the residual stream after each layer, at the last position: `[1 + layers, width]`."""
    embeddings = prompts.embeddings[:, : prompts.lengths[0]]  # without padding
    seen = [embeddings[0, -1]]
    hooks = [
        layer.register_forward_hook(lambda _, __, output: seen.append(output[0, -1]))
        for layer in model.language_model.model.layers
    ]
    try:
        model.language_model(embeddings, torch.arange(embeddings.shape[1], device=embeddings.device)[None])
    finally:
        for hook in hooks:
            hook.remove()
    return np.stack([_numpy(state) for state in seen])


def _numpy(tensor: Tensor) -> np.ndarray:
    """On the host; half precision as float32."""
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
