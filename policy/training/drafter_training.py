"""Trains a drafter for a target by self-distillation. Knows frames, the target and the student; nothing of serving.

One run, top to bottom: read frames -> load the target -> let the student learn the target's greedy actions on them, on
a schedule of minutes -> keep progress -> save the averaged weights where serving looks for them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from policy.drafting.registry import trained_folder
from policy.hardware import choose_device, choose_dtype
from policy.openvla.action_tokens import load_statistics, resolve_unnorm_key
from policy.openvla.checkpoint import checkpoint_hash, load_checkpoint, locate_checkpoint
from policy.openvla.images import PreprocessorSettings, resolve_image_path
from policy.openvla.prompt import Prompter
from policy.training.acceptance_score import AcceptanceScore, average
from policy.training.contact_sheet import FRAMES_IN_A_ROW, save_contact_sheet
from policy.training.draft_vla_student import DraftVLAStudent
from policy.training.drafter_config import DRAFT_VLA, DrafterTrainingConfig
from policy.training.drafter_progress import WAY_OUT, DrafterProgress
from policy.training.episode_reader import EpisodeReader, FrameSource
from policy.training.frame_library import FrameLibrary, load_libraries
from policy.training.head_student import HeadStudent
from policy.training.running_average import running_average
from policy.training.teacher import ActionBook, Teacher
from policy.training.widen import OPENVLA_7B_SIZES, widened

Report = Callable[[str], None]
SHEET_FRAMES: Final = 2 * FRAMES_IN_A_ROW


class Student(Protocol):
    """A drafter that learns. start: first dimension it drafts. Methods take the network because it is also averaged."""

    start: int
    network: nn.Module

    def losses(self, network: nn.Module, book: ActionBook, rows: Tensor) -> dict[str, Tensor]:
        """Scalars; "total" is what is minimised."""

    def claims(self, network: nn.Module, book: ActionBook, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What the drafter would claim in serving, `[B, 6, 256]`, and the target's bins, `[B, 7]`."""

    def save(self, network: nn.Module, directory: Path) -> None: ...


class DrafterTraining:
    """`run` trains to the end of the schedule. Setting `stopping` ends it after the step under way; a later run with
    the same output goes on from there.

    Raises ValueError and CheckpointError for frames, targets and options that cannot be used.
    """

    def __init__(self, config: DrafterTrainingConfig, report: Report = print) -> None:
        self.config, self.stopping, self._report = config, False, report
        torch.manual_seed(config.seed)
        torch.set_float32_matmul_precision("high")
        directory = locate_checkpoint(config.target)
        datasets = load_statistics(directory)
        dataset = resolve_unnorm_key(datasets, config.unnorm_key)
        settings = PreprocessorSettings.load(directory)
        image_path = resolve_image_path(config.image_path, dataset)
        device = choose_device(config.device)
        dtype = choose_dtype(config.dtype, device)
        self.output = config.output or trained_folder(directory, config.folder_name)
        self.progress_files = _progress_files(config, self.output, directory, dataset, image_path, dtype)
        state = self.progress_files.state() if config.resume else None
        reader = EpisodeReader(
            FrameSource(config.frames, config.camera, config.turned), image_path, settings, config.decoders
        )
        libraries = load_libraries(reader, config.capacity, config.held_out_every, report)
        report(f"{len(libraries[0])} frames to train on, {len(libraries[1])} to validate with")
        model = load_checkpoint(directory, device, dtype)
        model = (model if config.shape == "own" else widened(model, OPENVLA_7B_SIZES)).requires_grad_(False)
        teacher = Teacher(model, Prompter(directory, maximum_tokens=model.config.maximum_tokens), settings)
        self.training, self.validation = (ActionBook(library, teacher) for library in libraries)
        self.student: Student = (
            DraftVLAStudent(config, teacher, directory, dataset, datasets[dataset])
            if config.kind == DRAFT_VLA
            else HeadStudent(config, teacher)
        )
        self.network = self.student.network.train()
        self.average = running_average(self.network, config.average_decay)
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained, config.resolved_learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
        )
        self.device, self.step, self.elapsed = device, 0, 0.0
        self.learned_from = set(libraries[0].rows_by_digest)
        if state is not None:
            self._go_on(state)
        if config.resume:
            self._take_over_actions()
        self.folder.mkdir(parents=True, exist_ok=True)
        save_contact_sheet(_some_frames(libraries[0]), self.folder / "frames.png")
        report(f"some of them, which should stand upright: {self.folder / 'frames.png'}")
        if self.step == 0:
            self.metrics_file.unlink(missing_ok=True)

    @property
    def progress(self) -> float:
        """Share of the schedule that is done, by minutes or by steps, whichever is further on."""
        return max(self.elapsed / (60 * self.config.minutes), self.step / self.config.max_steps)

    def run(self) -> AcceptanceScore:
        """Train, log to `metrics.jsonl`, save; returns the last validation.

        Nothing is logged where no step was made, and nothing saved where none was ever made but the target's actions.
        """
        if self.config.kind == DRAFT_VLA and self.progress < 1:
            self._ask_for_all_actions()
        last_log = last_save = time.monotonic()
        losses: dict[str, Tensor] = {}
        score: AcceptanceScore | None = None
        while self.progress < 1 and not self.stopping:
            started = time.monotonic()
            losses = self._learn()
            score = None
            if self.device.type == "cuda" and self.step % 8 == 0:
                torch.cuda.synchronize(self.device)  # keeps `elapsed` honest: the queue never runs far ahead
            self.elapsed += time.monotonic() - started
            if time.monotonic() - last_log > self.config.log_seconds:
                score = self._log(losses)
                last_log = time.monotonic()
            if time.monotonic() - last_save > self.config.save_seconds:
                self.save()
                last_save = time.monotonic()
        if score is None:
            score = self._log(losses) if losses else self.validate()
        if losses:
            self.save()
        return score

    def _learn(self) -> dict[str, Tensor]:
        """One step on frames drawn at random."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        rows = torch.randint(len(self.training.library), (config.resolved_batch_size,))
        losses = self.student.losses(self.network, self.training, rows)
        losses["total"].backward()
        clip_grad_norm_(self.network.parameters(), config.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update_parameters(self.network)
        self.step += 1
        return losses

    def _learning_rate(self) -> float:
        """Linear warm-up, then cosine to `final_rate` of the peak over `progress`."""
        config = self.config
        cosine = config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress)))
        return config.resolved_learning_rate * min(1.0, (self.step + 1) / config.warmup_steps) * cosine

    def _ask_for_all_actions(self) -> None:
        """A draft model sees every frame many times, and would wait for the target each first time."""
        size, started = 32, time.monotonic()
        for first in range(0, len(self.training.library), size):
            rows = torch.arange(first, min(first + size, len(self.training.library)))
            self.training.look_up(rows)
            if self.stopping:
                break
            if (now := time.monotonic()) - started > self.config.log_seconds:
                self._report(f"asked the target on {first + len(rows)} of {len(self.training.library)} frames")
                self._save_actions()
                started = now
        self._save_actions()

    @torch.no_grad()
    def validate(self) -> AcceptanceScore:
        """Acceptance of the averaged weights' drafts on held-out episodes, the same frames every time."""
        self.average.eval()
        order = torch.randperm(len(self.validation.library), generator=torch.Generator().manual_seed(0))
        scores = []
        for rows in order[: self.config.validation_frames].split(32):
            claims, bins = self.student.claims(self.average.module, self.validation, rows)
            scores.append((len(rows), AcceptanceScore.of(claims, bins, self.student.start)))
        return average(scores)

    def _log(self, losses: dict[str, Tensor]) -> AcceptanceScore:
        score = self.validate()
        record = {
            "step": self.step,
            "seconds": round(self.elapsed, 1),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "losses": {name: round(value.item(), 4) for name, value in losses.items()},
            "length": round(score.length, 3),
            "length_relaxed": round(score.length_relaxed, 3),
            **asdict(score),
        }
        with self.metrics_file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        kept = " ".join(f"{100 * share:.0f}" for share in score.kept)
        self._report(
            f"{self.progress:5.1%}  step {self.step}  {self.elapsed:.0f} s  losses {record['losses']}  "
            f"tokens per pass {score.length:.2f}, within 9 bins {score.length_relaxed:.2f}  kept by position [{kept}] %"
        )
        return score

    def save(self) -> None:
        """The averaged weights to `output`, with the configuration beside them, and all that a later run needs."""
        self.average.eval()
        module = self.average.module
        assert isinstance(module, nn.Module)
        self.student.save(module, self.output)
        configuration = asdict(self.config) | {"steps": self.step, "seconds": round(self.elapsed, 1)}
        text = json.dumps(configuration, indent=1, default=str) + "\n"
        (self.folder / "config.json").write_text(text, encoding="utf-8")
        self.progress_files.save_state(
            {
                "network": self.network.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "elapsed": self.elapsed,
                "learned_from": sorted(self.learned_from),
            }
        )
        self._save_actions()

    def _save_actions(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.progress_files.save_actions(self.training.by_episode() | self.validation.by_episode())

    def _take_over_actions(self) -> None:
        actions = self.progress_files.actions()
        for book in (self.training, self.validation):
            book.take_over(actions)

    def _go_on(self, state: dict[str, Any]) -> None:
        """Take over an earlier run's state. Raises ValueError where it has learned from what is now held out."""
        self.learned_from.update(state["learned_from"])
        if seen := self.learned_from & self.validation.library.rows_by_digest.keys():
            raise ValueError(
                f"{self.folder} holds a training that has learned from {len(seen)} of the episodes that are now held "
                f"out, as there are others than before; {WAY_OUT}"
            )
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self.folder} holds another network's weights: {error}; {WAY_OUT}") from error
        self.step, self.elapsed = state["step"], state["elapsed"]
        self._report(f"going on from step {self.step}")

    @property
    def folder(self) -> Path:
        """Where progress is kept."""
        return self.progress_files.folder

    @property
    def metrics_file(self) -> Path:
        return self.progress_files.metrics_file


def _progress_files(
    config: DrafterTrainingConfig, output: Path, directory: Path, dataset: str, image_path: str, dtype: torch.dtype
) -> DrafterProgress:
    target = checkpoint_hash(directory)
    made_with = {
        "kind": config.kind,
        "the target's hash": target,
        "shape": config.shape,
        "unnorm_key": dataset,
        "image_path": image_path,
        "held_out_every": str(config.held_out_every),
    }
    if config.kind == DRAFT_VLA:  # a head's sizes are its target's
        made_with |= {f"network.{name}": str(size) for name, size in asdict(config.network).items()}
    asked = f"{target}, {config.shape}, {image_path}, {dtype}"
    return DrafterProgress(output.with_name(f"{output.name}-training"), made_with, asked)


def _some_frames(library: FrameLibrary) -> np.ndarray:
    """As many as a contact sheet has, evenly taken."""
    return library.frames(torch.linspace(0, len(library) - 1, SHEET_FRAMES).round().long()).numpy()
