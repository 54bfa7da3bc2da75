"""One speculating policy for several clients: what one session has seen is never another's draft."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_openvla import INSTRUCTIONS

from bridge.client import PolicyClient
from bridge.server import PolicyServer
from policy.decoding.config import DecodingConfig
from policy.decoding.prompt_batch import PromptBatch
from policy.decoding.stopwatch import Stopwatch
from policy.runtime import Policy
from policy.types import Action, Observation

CONFIG = DecodingConfig("repeat", drafters=("previous",), nodes=16, tail="jacobi")


@pytest.fixture
def policy(acting_checkpoint: Path) -> Iterator[Policy]:
    loaded = Policy.load(acting_checkpoint, device="cpu", dtype="float32", decoding=CONFIG)
    yield loaded
    loaded.close()


def frame(seed: int) -> Observation:
    noise = np.random.default_rng(seed)
    return Observation(noise.integers(0, 256, (256, 256, 3), dtype=np.uint8), INSTRUCTIONS[seed % 2])


def previous_was_drafted(action: Action) -> bool:
    return "previous" in action.trace.sources


def test_the_spec_names_the_decoding_and_tokens_stay_plain(policy: Policy, acting_checkpoint: Path) -> None:
    plain = Policy.load(acting_checkpoint, device="cpu", dtype="float32")
    assert (plain.spec.decoder, policy.spec.decoder) == ("autoregressive", "repeat")
    for seed in (0, 1, 0, 0):
        assert policy.act(frame(seed)).tokens.tolist() == plain.act(frame(seed)).tokens.tolist()


def test_warming_up_leaves_nothing_in_the_first_episode(policy: Policy) -> None:
    assert not previous_was_drafted(policy.act(frame(0)))
    again = policy.act(frame(0))
    assert previous_was_drafted(again)
    assert again.trace.target_passes < 7


def test_sessions_are_kept_apart_and_forgotten_on_reset(policy: Policy) -> None:
    policy.act_batch([frame(0), frame(1)], ["a", "b"])
    newcomer, old = policy.act_batch([frame(0), frame(1)], ["c", "b"])
    assert not previous_was_drafted(newcomer)
    assert previous_was_drafted(old)
    policy.reset("b")
    kept, reset = policy.act_batch([frame(0), frame(1)], ["a", "b"])
    assert previous_was_drafted(kept)
    assert not previous_was_drafted(reset)


def test_through_the_bridge(policy: Policy) -> None:
    with PolicyServer(policy, "tcp://127.0.0.1:*") as server:
        server.wait_ready(20)
        with (
            PolicyClient(server.endpoint, timeout_s=20) as first,
            PolicyClient(server.endpoint, timeout_s=20) as second,
        ):
            first.reset()
            second.reset()
            assert not previous_was_drafted(first.act(frame(0)))
            assert not previous_was_drafted(second.act(frame(1)))
            repeated = first.act(frame(0))
            assert previous_was_drafted(repeated)
            assert sum(repeated.trace.accepted_per_pass) == 7
            first.reset()
            assert not previous_was_drafted(first.act(frame(0)))
            assert previous_was_drafted(second.act(frame(1)))


def test_learning_while_nobody_waits_changes_no_action(policy: Policy, acting_checkpoint: Path) -> None:
    resting = Policy.load(acting_checkpoint, device="cpu", dtype="float32", decoding=CONFIG)
    for seed in (0, 0, 1, 0):
        act, want = resting.act(frame(seed)), policy.act(frame(seed))
        resting.rest()
        resting.rest()
        assert act.tokens.tolist() == want.tokens.tolist()
        assert act.trace.sources == want.trace.sources
    resting.close()


@pytest.mark.parametrize("decoding", [None, CONFIG])
def test_a_batch_that_is_filled_up_gives_the_same_actions(acting_checkpoint: Path, decoding: DecodingConfig | None):
    """As on a GPU, where passes are recorded for batches of few sizes; here batches are filled up alike, unrecorded."""
    plain, recorded = (Policy.load(acting_checkpoint, device="cpu", dtype="float32", decoding=decoding) for _ in "ab")
    sizes = []
    recorded._recorded = True
    decode = recorded._running_decoder().decode

    def noting(prompts: PromptBatch, sessions: Sequence[str], stopwatch: Stopwatch) -> Any:
        sizes.append((len(sessions), len(prompts.lengths)))
        return decode(prompts, sessions, stopwatch)

    setattr(recorded._running_decoder(), "decode", noting)  # noqa: B010
    for count in (5, 5, 2, 1, 7):
        frames, names = [frame(seed) for seed in range(count)], [f"robot {seed}" for seed in range(count)]
        for want, got in zip(plain.act_batch(frames, names), recorded.act_batch(frames, names), strict=True):
            assert got.tokens.tolist() == want.tokens.tolist()
            assert replace(got.trace, stage_ms={}) == replace(want.trace, stage_ms={})
    assert sizes == [(5, 6), (5, 6), (2, 2), (1, 1), (7, 8)]
    for policy in (plain, recorded):
        policy.close()
