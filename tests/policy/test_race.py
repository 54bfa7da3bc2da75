"""Decoders meet the same frames, and what is noted of them adds up."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from policy.decoding.acceptance.exact import Exact
from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.capture import Recording
from policy.decoding.race import Runner, race
from policy.decoding.replay import LoggedEpisode
from policy.decoding.speculative import SpeculativeDecoder
from policy.drafting.previous import PreviousAction
from policy.openvla.images import PreprocessorSettings
from policy.openvla.model import OpenVLA


def still_episode(name: str, steps: int) -> LoggedEpisode:
    """The same picture again and again, so that the previous action is always right."""
    frames = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8).repeat(steps, 0)
    return LoggedEpisode(name, "open", [1, 5, 6], torch.zeros(steps, 0), frames, PreprocessorSettings())


@torch.inference_mode()
def test_rows_add_up(acting_model: OpenVLA) -> None:
    plain = Runner(AutoregressiveDecoder(acting_model))
    drafted = Runner(SpeculativeDecoder(acting_model, Exact(), [PreviousAction()], name="drafted"))
    race([plain, drafted], [still_episode("warm", 2)])
    for runner in (plain, drafted):
        assert len(runner.traces) == 2
        runner.forget()
    race([plain, drafted], [still_episode("a", 3), still_episode("b", 1)])
    reference, row = plain.row(), drafted.row()
    assert (reference["actions"], reference["passes"], reference["first_pass_tokens"]) == (4, 7.0, 1.0)
    assert reference["timed_actions"] == 4
    assert row["equal_actions"] == reference["equal_actions"] == 1.0
    # An episode's first action has no previous one; afterwards it is right.
    assert row["drafted_by_position"][0] == pytest.approx(0.5)
    assert row["drafts_by_source"].keys() <= {"previous", "jacobi"}
    assert row["passes"] < 7
    assert row["tokens_per_pass"] == pytest.approx(7 / row["passes"])
    assert row["mean_ms"] >= row["vision_ms"] + row["prefill_ms"]
    assert row["p50_ms"] <= row["p95_ms"]


@torch.inference_mode()
def test_a_race_ends_with_its_time(acting_model: OpenVLA, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    runners = [Runner(AutoregressiveDecoder(acting_model)) for _ in range(2)]
    episodes = [still_episode("a", 3), still_episode("b", 4), still_episode("c", 5)]
    # Asked before every frame but the first: frames of a at 0 and 1, of b at 2 and 3.
    assert race(runners, episodes, until=4) == 2
    assert [len(runner.traces) for runner in runners] == [5, 5]
    assert race(runners, episodes, until=0) == 1, "one frame at least"
    assert [len(runner.traces) for runner in runners] == [6, 6]


@torch.inference_mode()
def test_actions_that_record_a_pass_are_not_timed(acting_model: OpenVLA) -> None:
    def record(function: Callable[[], Tensor | None], inputs: tuple[Tensor, ...]) -> Recording:
        output = function()

        def play() -> None:
            found = function()
            if output is not None and found is not None:
                output.copy_(found)

        return Recording(inputs, output, play)

    runner = Runner(AutoregressiveDecoder(acting_model, record))
    race([runner], [still_episode("a", 3)])
    assert len(runner.traces) == 3
    assert len(runner.milliseconds) == len(runner.stages) == 2
