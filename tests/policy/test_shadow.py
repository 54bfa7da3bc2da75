"""Decoders side by side on logged frames: what is counted, and what the rules come to on a real, if small, network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from small_openvla import INSTRUCTIONS

from policy.decoding.acceptance import make_rule
from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.physical import ActionUnits
from policy.decoding.prompt_batch import PromptBatch
from policy.decoding.replay import LoggedEpisode
from policy.decoding.shadow import Shadow, ShadowRecord
from policy.decoding.speculative import SpeculativeDecoder
from policy.decoding.stopwatch import Stopwatch
from policy.drafting.previous import PreviousAction
from policy.openvla.action_tokens import ActionStatistics
from policy.openvla.config import PATCHES
from policy.openvla.images import PreprocessorSettings
from policy.openvla.model import OpenVLA
from policy.types import DecodeTrace

STATISTICS = ActionStatistics(-np.ones(7), np.ones(7), np.array([True] * 6 + [False]))
UNITS = ActionUnits.from_statistics(STATISTICS)
MILLIMETRES, MILLIRADIANS = 100 / 255, 1000 / 255  # per bin


class Scripted:
    """Emits given bins, by episode and step; remembers what it was told to forget."""

    def __init__(self, name: str, model: OpenVLA, bins: dict[str, list[list[int]]], trace: DecodeTrace) -> None:
        self.name, self.model = name, model
        self.forgotten: list[str] = []
        self._bins = {episode: iter(actions) for episode, actions in bins.items()}
        self._trace = trace

    def decode(
        self, prompts: PromptBatch, sessions: Sequence[str], stopwatch: Stopwatch
    ) -> tuple[torch.Tensor, list[DecodeTrace]]:
        bins = torch.tensor([next(self._bins[session]) for session in sessions])
        return self.model.config.action_vocabulary - 1 - bins, [self._trace] * len(sessions)

    def forget(self, session: str) -> None:
        self.forgotten.append(session)


def episode(model: OpenVLA, name: str, steps: int, seed: int = 0) -> LoggedEpisode:
    """Features that wander a little from frame to frame, as a camera's do."""
    torch.manual_seed(seed)
    wander = 0.1 * torch.randn(steps, PATCHES, model.config.language.width).cumsum(dim=0)
    features = torch.randn(1, *wander.shape[1:]) + wander
    frames = np.zeros((len(features), 224, 224, 3), np.uint8)
    return LoggedEpisode(name, "open", [1, 5, 6], features, frames, PreprocessorSettings())


def test_counts_and_units_of_a_known_difference(small_model: OpenVLA) -> None:
    plain = {"a": [[100] * 7] * 2, "b": [[100] * 7] * 3}
    other = {
        "a": [[103, 100, 100, 100, 100, 98, 255], [103, 100, 100, 100, 100, 98, 100]],
        "b": [[99, 100, 100, 100, 100, 100, 100], [100] * 7, [100] * 7],
    }
    trace = DecodeTrace(2, (3, 4), sources=("previous", "", "jacobi", "", "", "", ""), forced=("stall",))
    reference = Scripted("plain", small_model, plain, DecodeTrace(7))
    shadow = Shadow(reference, [Scripted("other", small_model, other, trace)], UNITS)
    shadow.play([episode(small_model, "a", 2), episode(small_model, "b", 3)])
    row = shadow.records[0].row()

    assert (row["decoding"], row["episodes"], row["actions"]) == ("other", 2, 5)
    assert (row["passes"], row["passes_share"], row["tokens_per_pass"]) == (2, {"2": 1.0}, 3.5)
    assert row["identical_share"] == 2 / 5
    assert row["drafted_share"] == {"dx": 1, "dy": 0, "dz": 1, "droll": 0, "dpitch": 0, "dyaw": 0, "gripper": 0}
    assert row["forced_share"] == {"stall": 1.0}
    assert row["dx_mm"]["max"] == pytest.approx(3 * MILLIMETRES)
    assert row["dx_mm"]["p99"] == pytest.approx(3 * MILLIMETRES)
    assert row["dx_mm"]["size"] == pytest.approx((3 + 3 + 1) / 5 * MILLIMETRES)
    assert row["dx_mm"]["mean"] == pytest.approx((3 + 3 - 1) / 5 * MILLIMETRES)
    assert row["dx_mm"]["drift"] == pytest.approx(6 * MILLIMETRES)
    assert row["dyaw_mrad"]["mean"] == pytest.approx(-4 / 5 * MILLIRADIANS)
    assert row["dyaw_mrad"]["drift"] == pytest.approx(4 * MILLIRADIANS)
    assert not any(row["dz_mm"].values())
    assert row["gripper_side"] == pytest.approx({"max": 1, "p99": 0.96, "size": 0.2, "mean": 0.2, "drift": 1})


def test_every_decoder_forgets_an_episode_that_is_over(small_model: OpenVLA) -> None:
    bins = {"a": [[100] * 7], "b": [[100] * 7]}
    both = [Scripted(name, small_model, bins, DecodeTrace(7)) for name in ("plain", "other")]
    Shadow(both[0], both[1:], UNITS).play([episode(small_model, name, 1) for name in bins])
    assert [decoder.forgotten for decoder in both] == [["a", "b"]] * 2


def test_ids_that_are_no_actions_count_as_the_nearest_bin(small_model: OpenVLA) -> None:
    odd = {"a": [[-5, 300, 100, 100, 100, 100, 100]]}
    reference = Scripted("plain", small_model, {"a": [[0, 255, 100, 100, 100, 100, 100]]}, DecodeTrace(7))
    shadow = Shadow(reference, [Scripted("other", small_model, odd, DecodeTrace(7))], UNITS)
    shadow.play([episode(small_model, "a", 1)])
    row = shadow.records[0].row()
    assert row["identical_share"] == 0
    assert row["dx_mm"]["max"] == row["dy_mm"]["max"] == 0


def decoder(model: OpenVLA, name: str, **options: Any) -> SpeculativeDecoder:
    return SpeculativeDecoder(model, make_rule(name, options, STATISTICS), [PreviousAction()], name=name)


@torch.inference_mode()
def test_exact_decoding_does_not_deviate_and_tolerance_saves_passes(small_model: OpenVLA) -> None:
    names = ("exact", "spec-vla", "corrected")
    tolerant = [decoder(small_model, name, **({} if name == "exact" else {"radius": 255})) for name in names]
    shadow = Shadow(AutoregressiveDecoder(small_model), [AutoregressiveDecoder(small_model), *tolerant], UNITS)
    shadow.play([episode(small_model, INSTRUCTIONS[index], 4, seed=index) for index in range(2)])
    plain, exact, drafted, corrected = (record.row() for record in shadow.records)
    assert plain["passes"] == 7
    assert exact["identical_share"] == plain["identical_share"] == 1.0
    assert exact["dx_mm"]["max"] == exact["dyaw_mrad"]["max"] == 0
    # Not equally many: this target leaves the action tokens at times, depending on what was emitted before.
    assert max(drafted["passes"], corrected["passes"]) < exact["passes"]
    # The first coordinate follows no draft, so the target's own choice of it is that of plain decoding.
    assert corrected["dx_mm"]["max"] == 0 < drafted["dx_mm"]["max"]


def test_names_tell_decoders_apart(small_model: OpenVLA) -> None:
    plain = AutoregressiveDecoder(small_model)
    with pytest.raises(ValueError, match="a name of its own, got exact, exact"):
        Shadow(plain, [decoder(small_model, "exact")] * 2, UNITS)


def test_no_frames_make_no_result() -> None:
    with pytest.raises(ValueError, match="exact was shown no frames"):
        ShadowRecord("exact").row()
