"""Several decoders on the same logged frames, one after the other on each frame, so that all meet the same machine.

Knows time, passes and whose drafts were accepted. Knows nothing of how decoders differ; `policy.decoding.agreement`
compares tokens in depth.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from policy.decoding.capture import Captured
from policy.decoding.config import ActionDecoder
from policy.decoding.prompt_batch import PromptBatch, Sight
from policy.decoding.replay import LoggedEpisode
from policy.decoding.stopwatch import Stopwatch
from policy.openvla.config import ACTION_DIMENSIONS
from policy.types import DecodeTrace

STAGES = ("vision", "prefill", "decode")


@dataclass(slots=True)
class Runner:
    """One decoder and what is noted of it, growing action by action.

    milliseconds: of each action, from pixels on the device to tokens on the host, but for those in which a pass of a
    new shape was recorded, as serving does at the start. stages: the same by stage.
    equal: number of actions with the first runner's tokens.
    """

    decoder: ActionDecoder
    milliseconds: list[float] = field(default_factory=list)
    traces: list[DecodeTrace] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)
    equal: int = 0

    def run(self, episode: LoggedEpisode, pixels: torch.Tensor) -> np.ndarray:
        """Decode one frame as `Policy.act` does and note it; token ids `[7]`."""
        model = self.decoder.model
        made, began = Captured.made, time.perf_counter()
        stopwatch = Stopwatch(model.device)
        sight = Sight(pixels, (episode.instruction,))
        self.decoder.look(sight)
        features = model.image_features(pixels)
        stopwatch.lap("vision")
        prompts = PromptBatch.embed(model, [episode.prompt], features, sight)
        ids, traces = self.decoder.decode(prompts, [episode.name], stopwatch)
        milliseconds = 1e3 * (time.perf_counter() - began)
        self.decoder.study()  # as a server's policy does while the robot moves
        self.traces += traces
        if Captured.made == made:
            self.milliseconds.append(milliseconds)
            self.stages.append(stopwatch.stage_ms)
        return ids[0].numpy()

    def forget(self) -> None:
        """What was noted so far was warming."""
        self.milliseconds, self.traces, self.stages, self.equal = [], [], [], 0

    def row(self) -> dict[str, Any]:
        """Means and percentiles for a table; at least one action must have been timed."""
        times, count = np.array(self.milliseconds), len(self.traces)
        drafted = np.mean([[bool(source) for source in trace.sources] for trace in self.traces], axis=0)
        passes = float(np.mean([trace.target_passes for trace in self.traces]))
        sources = Counter(source for trace in self.traces for source in trace.sources if source)
        p50, p95 = np.percentile(times, (50, 95))
        return {
            "decoding": self.decoder.name,
            "actions": count,
            "timed_actions": len(times),
            "mean_ms": float(times.mean()),
            "p50_ms": float(p50),
            "p95_ms": float(p95),
            **{f"{stage}_ms": float(np.mean([row.get(stage, 0.0) for row in self.stages])) for stage in STAGES},
            "passes": passes,
            "tokens_per_pass": ACTION_DIMENSIONS / passes,
            "first_pass_tokens": float(np.mean([trace.accepted_per_pass[0] for trace in self.traces])),
            "drafted_by_position": [round(float(share), 4) for share in drafted],
            "drafts_by_source": {name: round(number / count, 4) for name, number in sources.most_common()},
            "equal_actions": self.equal / count,
        }


def race(runners: Sequence[Runner], episodes: Sequence[LoggedEpisode], until: float = math.inf) -> int:
    """All frames of all episodes, or as many as begin before `until`, in seconds of time.monotonic, but one at least;
    the first runner's tokens are what others are compared with. Returns how many episodes were begun.
    """
    begun = 0
    for episode in episodes:
        for step in range(len(episode)):
            if begun and time.monotonic() >= until:
                break
            begun += step == 0
            pixels = episode.pixels(step).to(runners[0].decoder.model.device)
            tokens = [runner.run(episode, pixels) for runner in runners]
            for runner, own in zip(runners, tokens, strict=True):
                runner.equal += bool((own == tokens[0]).all())
        for runner in runners:
            runner.decoder.forget(episode.name)
    return begun
