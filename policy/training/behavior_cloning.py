"""Trains a small OpenVLA-shaped policy on demonstrations. Knows frames and the network; nothing of simulators.

One run, top to bottom: wait for the first episodes -> freeze the action statistics -> build the network -> train on a
schedule of wall-clock minutes while the store takes in new episodes -> save in OpenVLA's on-disk layout.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from policy.hardware import mixed_precision
from policy.openvla.action_tokens import ActionStatistics, load_statistics, select_statistics
from policy.openvla.checkpoint import load_checkpoint, save_checkpoint
from policy.openvla.model import OpenVLA
from policy.training.augmentation import inference_pixels, training_pixels
from policy.training.config import TrainingConfig, UnknownInstructionError
from policy.training.frames import FRAME_SHAPE, Batch, DecodedEpisode, FrameStore
from policy.training.objective import (
    POSE_DIMENSIONS,
    Losses,
    bin_of,
    jitter_bins,
    log_probabilities_of_bins,
    losses,
    own_choice,
)
from policy.training.replicas import Replicas
from policy.training.running_average import running_average
from policy.training.teacher_forcing import ACTION_DIMENSIONS, PromptTable, Standardizer, TrainedPolicy

_PAUSE = 0.1  # seconds until it looks again whether there are new frames


class BehaviorCloning:
    """A training run in `config.output`; `run()` trains to the end of the schedule and saves the averaged weights.

    Setting `stopping` ends it before, after the step under way; a later run with the same output goes on from there.
    Raises ValueError for a configuration that cannot be met and TimeoutError where too few episodes come; files that
    cannot be read are reported and left out.
    Started by torchrun, it trains on several devices: each process has its share of the episodes and its own batches.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.stopping = False
        config.output.mkdir(parents=True, exist_ok=True)
        self.replicas = Replicas()
        self.device = self.replicas.device(config.device)
        torch.manual_seed(config.seed)
        torch.set_float32_matmul_precision("high")
        self.store = FrameStore(
            config.demonstrations,
            config.capacity,
            self.device,
            config.held_out_every,
            processes=config.decoders,
            owns=self.replicas.owns,
            check=self._check,
        )
        self.validation = FrameStore(
            config.demonstrations,
            config.validation_capacity,
            self.device,
            config.held_out_every,
            validation=True,
            processes=1,
            check=self._check,
        )
        network = self._network()
        self.action_base = network.config.action_vocabulary
        self.model = TrainedPolicy(network).to(self.device).train()
        self.prompts = PromptTable(self.prompter, config.instructions(), self.device)
        self._training_pixels = training_pixels
        if config.compile:
            self.model.compile_blocks()
            self._training_pixels = torch.compile(training_pixels, dynamic=False)
            self._warm()
        self._wait_for_episodes()
        self.elapsed, self.step = 0.0, 0
        self._chooser: torch.nn.Module | None = None
        start = config.initialize_from
        self.statistics = self.replicas.from_first(
            self._action_statistics() if start is None else self._statistics_of(start)
        )
        self.standardizer = self.replicas.from_first(Standardizer.fit(self.store.privileged).to("cpu")).to(self.device)
        self.average = running_average(self.model, config.average_decay)
        self.optimizer = torch.optim.AdamW(
            self._parameter_groups(), lr=config.learning_rate, betas=(0.9, 0.95), fused=self.device.type == "cuda"
        )
        if config.resume and self._state_file.exists():
            self._load_state()
        self.q01 = torch.tensor(self.statistics.q01, device=self.device, dtype=torch.float32)
        self.q99 = torch.tensor(self.statistics.q99, device=self.device, dtype=torch.float32)
        self.mask = torch.tensor(self.statistics.mask, device=self.device)
        torch.manual_seed(config.seed + self.replicas.rank)  # the weights were drawn alike, batches must not be

    # --- preparation -------------------------------------------------------------------------------------------------

    def _network(self) -> OpenVLA:
        """Fresh, or that of the checkpoint to start from, with a vocabulary that has all words of the instructions."""
        if not self.replicas.first:
            self.replicas.agree()  # the first one has written the tokenizer
        self.prompter, vocabulary_size = self.config.build_tokenizer()
        if self.replicas.first:
            self.replicas.agree()
        start = self.config.initialize_from
        if start is None:
            return OpenVLA.from_config(self.config.network.openvla_config(vocabulary_size))
        network = load_checkpoint(start, dtype=torch.float32)
        if network.config.language.vocabulary != vocabulary_size:
            raise ValueError(
                f"{start} has a vocabulary of {network.config.language.vocabulary} rows, the words of "
                f"{self.config.instructions_file} need {vocabulary_size}; give the instructions it was trained with"
            )
        return network

    def _warm(self) -> None:
        """Compile forward and backward pass while the first episodes are recorded: it takes a minute or two."""
        batch = self.config.batch_size
        task, fed = (torch.zeros(size, dtype=torch.int64, device=self.device) for size in (batch, (batch, 6)))
        frames = torch.zeros(batch, *FRAME_SHAPE, dtype=torch.uint8, device=self.device)
        with mixed_precision(self.device):
            pixels = self._training_pixels(frames, self.config.augmentation)
            logits, reading = self.model(pixels, *self.prompts.rows(task, self.action_base - fed))
        (logits.float().sum() + reading.float().sum()).backward()
        self.model.zero_grad(set_to_none=True)

    def _check(self, episode: DecodedEpisode) -> None:
        self.config.require_instruction(episode.instruction, episode.path)

    def _wait_for_episodes(self) -> None:
        try:
            self._require_episodes()
        except BaseException:
            self._close_stores()  # would go on with what is queued
            raise
        self.validation.refresh()

    def _require_episodes(self) -> None:
        deadline = time.monotonic() + self.config.wait_seconds
        share = math.ceil(self.config.start_episodes / self.replicas.count)
        while True:
            self.store.refresh()
            if self.store.episodes >= share:
                break
            if time.monotonic() > deadline:
                complaints = list(self.store.unreadable.values())
                also = (
                    f"; {len(complaints)} could not be read, the first of them: {complaints[0]}" if complaints else ""
                )
                raise TimeoutError(
                    f"{self.store.episodes} training episodes of {share} after {self.config.wait_seconds:.0f} s, "
                    f"start_episodes is {self.config.start_episodes}; collect more or lower it{also}"
                )
            time.sleep(1.0)

    def _close_stores(self) -> None:
        self.store.close()
        self.validation.close()

    def _action_statistics(self) -> ActionStatistics:
        """The bins' range and the moments of the labels so far; frozen, since tokens depend on them."""
        values = self.store.actions.double().cpu().numpy()
        low, high = np.quantile(values, 0.01, 0), np.quantile(values, 0.99, 0)
        if self.config.action_range is not None:
            high[:6] = self.config.action_range
            low[:6] = -high[:6]
        return ActionStatistics(
            q01=low,
            q99=high,
            mask=np.array([True] * 6 + [False]),
            min=values.min(0),
            max=values.max(0),
            mean=values.mean(0),
            std=values.std(0),
        )

    def _statistics_of(self, checkpoint: Path) -> ActionStatistics:
        """Those a checkpoint was trained with: its tokens mean nothing under others."""
        return select_statistics(load_statistics(checkpoint), self.config.statistics_key)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Weight decay on matrices only; blocks of the layout that inference never computes are left out."""
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if p.ndim >= 2 and "embed" not in n]
        others = [p for n, p in named if not (p.ndim >= 2 and "embed" not in n)]
        return [{"params": matrices, "weight_decay": self.config.weight_decay}, {"params": others, "weight_decay": 0.0}]

    # --- the step ----------------------------------------------------------------------------------------------------

    def normalize_actions(self, actions: torch.Tensor) -> torch.Tensor:
        """To [-1, 1] by q01/q99 as OpenVLA's training data are; the gripper (mask false) stays 0 or 1."""
        scaled = (2 * (actions - self.q01) / (self.q99 - self.q01 + 1e-8) - 1).clamp(-1, 1)
        return torch.where(self.mask, scaled, actions)

    def _losses(self, model: Callable[..., Any], store: FrameStore, batch: Batch, training: bool) -> Losses:
        config = self.config
        normalized = self.normalize_actions(batch.actions)
        bins = bin_of(normalized)[:, : ACTION_DIMENSIONS - 1]
        fed = jitter_bins(bins, config.objective.token_jitter if training else 0)
        ids, lengths = self.prompts.rows(self.prompts.of(store.instructions)[batch.task], self.action_base - fed)
        frames = batch.frames
        pixels = self._training_pixels(frames, config.augmentation) if training else inference_pixels(frames)
        with mixed_precision(self.device):
            logits, reading = model(pixels, ids, lengths)
        scene = self.standardizer(batch.privileged)
        choice = self._own_choice(pixels, ids, lengths) if training else None
        return losses(logits, reading, normalized, scene, self.action_base, config.objective, self.progress, choice)

    def _own_choice(self, pixels: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor | None:
        """What the averaged policy of `own_choice_from` means after the same tokens, `[B, 6]`; None before that."""
        begins = self.config.objective.own_choice_from
        if begins >= 1 or self.progress < begins:
            return None
        if self._chooser is None:
            self._chooser = copy.deepcopy(self.average.module).eval().requires_grad_(False)
        with torch.no_grad(), mixed_precision(self.device):
            logits, _ = self._chooser(pixels, ids, lengths)
        return own_choice(log_probabilities_of_bins(logits[:, :POSE_DIMENSIONS], self.action_base))

    def _learning_rate(self) -> float:
        """Linear warm-up, then cosine to `final_rate` of the peak over `progress`."""
        config = self.config
        progress = min(1.0, self.progress)
        cosine = config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))
        return config.learning_rate * min(1.0, (self.step + 1) / config.warmup_steps) * cosine

    @property
    def progress(self) -> float:
        """Share of the schedule that is done, by minutes or by steps, whichever is further on."""
        return max(self.elapsed / (60 * self.config.minutes), self.step / self.config.max_steps)

    def run(self) -> Path:
        """Trains, logs to `metrics.jsonl`, saves the state now and then and the final policy to `output/policy`.

        Raises UnknownInstructionError for a new episode with one; the state is saved then.
        """
        try:
            result = self._train()
        except UnknownInstructionError:
            if self.replicas.first:
                self._save_state()
            raise
        finally:
            self._close_stores()
        if self.replicas.first:
            if result is not None:
                self._log(result)
            self._save_state()
            self.save_policy(self.config.output / "policy")
        self.replicas.close()
        return self.config.output / "policy"

    def _train(self) -> Losses | None:
        """Takes steps to the end of the schedule, or until `stopping`; returns the losses of the last one."""
        config = self.config
        last_log = last_save = last_refresh = time.monotonic()
        result: Losses | None = None
        while self._goes_on():
            started = time.monotonic()
            if self._waits_for_frames():
                time.sleep(_PAUSE)
            else:
                result = self._step()
            now = time.monotonic()
            if now - last_refresh > config.refresh_seconds and not self.stopping:
                self.store.refresh()
                self.validation.refresh()
                last_refresh = now
            if self.replicas.first and result is not None and now - last_log > config.log_seconds:
                self._log(result)
                last_log = now
            if self.replicas.first and now - last_save > config.save_seconds:
                self._save_state()
                self.save_policy(config.output / "policy")
                last_save = now
            self.elapsed += time.monotonic() - started
        return result

    def _step(self) -> Losses:
        """One batch, one update of the weights and of their average."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        result = self._losses(self.model, self.store, self.store.sample(config.batch_size), training=True)
        result.total.backward()
        self.replicas.average_gradients(self.model.parameters())
        clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update_parameters(self.model)
        self.step += 1
        if self.device.type == "cuda" and self.step % 8 == 0:
            torch.cuda.synchronize()  # keeps `elapsed` honest: the queue never runs far ahead
        return result

    def _waits_for_frames(self) -> bool:
        """Whether the next step comes too early for `samples_per_frame`; all processes wait when the first one does."""
        limit = self.config.samples_per_frame
        if limit is None:
            return False
        waits = (self.step + 1) * self.config.batch_size > limit * self.store.taken_in
        return bool(self.replicas.agree(waits)[0])

    def _goes_on(self) -> bool:
        """Whether there is another step; all processes count the first one's time, and stop where it stops."""
        self.elapsed, stopping = self.replicas.agree(self.elapsed, self.stopping)
        return self.progress < 1 and not stopping

    # --- logging and saving ------------------------------------------------------------------------------------------

    def validate(self) -> Losses | None:
        """Losses of the averaged weights on held-out episodes, without augmentation."""
        if self.validation.count == 0:
            return None
        generator = torch.Generator().manual_seed(0)
        index = torch.randperm(self.validation.count, generator=generator)[: self.config.batch_size].to(self.device)
        self.average.eval()
        with torch.no_grad():
            return self._losses(self.average.module, self.validation, self.validation.rows(index), training=False)

    def _log(self, training: Losses) -> None:
        held_out = self.validate()
        record = {
            "step": self.step,
            "seconds": round(self.elapsed, 1),
            "samples_per_second": round(
                self.step * self.config.batch_size * self.replicas.count / max(self.elapsed, 1e-9)
            ),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "frames": self.store.count * self.replicas.count,  # shares are as good as equal
            "episodes": self.store.episodes * self.replicas.count,
            "train": describe(training),
            "held_out": describe(held_out) if held_out else None,
        }
        with (self.config.output / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        shown = record["held_out"] or record["train"]
        print(
            f"{self.progress:5.1%}  step {self.step}  {record['seconds']:.0f} s  {record['samples_per_second']}/s  "
            f"{record['episodes']} episodes  {record['frames']} frames  loss {record['train']['total']:.3f}  "
            f"held out {shown['total']:.3f}  within 4 bins {shown['near']}",
            flush=True,
        )

    def save_policy(self, directory: Path) -> Path:
        """The averaged weights in bf16 in OpenVLA's on-disk layout, with the exact configuration beside them."""
        save_checkpoint(
            self.averaged_network,
            directory,
            tokenizer_directory=self.config.tokenizer_directory,
            statistics={self.config.statistics_key: self._dataset_entry()},
        )
        configuration = asdict(self.config) | {"steps": self.step, "seconds": round(self.elapsed, 1)}
        (directory / "training_config.json").write_text(json.dumps(configuration, indent=1, default=str) + "\n")
        return directory

    def _dataset_entry(self) -> dict[str, Any]:
        """This data set's entry of `dataset_statistics.json`."""
        action = self.statistics.to_json()
        frames, episodes = (self.replicas.count * share for share in (self.store.count, self.store.episodes))
        return {"action": action, "num_transitions": frames, "num_trajectories": episodes}

    @property
    def averaged_network(self) -> OpenVLA:
        """The network with the moving average of the weights: what is saved and evaluated."""
        average = self.average.module
        assert isinstance(average, TrainedPolicy)
        return average.network

    @property
    def _state_file(self) -> Path:
        return self.config.output / "training_state.pt"

    def _save_state(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
            "statistics": self.statistics.to_json(),
            "standardizer": (self.standardizer.mean, self.standardizer.std),
        }
        partial = self._state_file.with_suffix(".tmp")
        torch.save(state, partial)
        partial.replace(self._state_file)

    def _load_state(self) -> None:
        state = torch.load(self._state_file, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.statistics = ActionStatistics.from_json(state["statistics"])
        self.standardizer = Standardizer(*state["standardizer"])


def describe(result: Losses) -> dict[str, Any]:
    """Losses as plain numbers for the log."""
    return {
        "total": round(result.total.item(), 4),
        "pose": round(result.pose.item(), 4),
        "gripper": round(result.gripper.item(), 4),
        "auxiliary": round(result.auxiliary.item(), 4),
        "accuracy": [round(x, 3) for x in result.accuracy.tolist()],
        "near": [round(x, 3) for x in result.near.tolist()],
    }
