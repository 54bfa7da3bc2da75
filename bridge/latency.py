"""Where the time of an action goes, seen from the client: collects timings and splits them into parts that add up.

Knows `bridge.client.ActTiming`. Knows nothing of tables or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bridge.client import ActTiming, PolicyClient
from policy.types import Observation


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """Milliseconds of one part over all actions."""

    part: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float


def time_actions(client: PolicyClient, observation: Observation, actions: int, warmup: int) -> list[ActTiming]:
    """Sends the same observation `warmup + actions` times and returns the timings of the last `actions`.

    Raises `BridgeError` where the server does not answer.
    """
    if actions < 1 or warmup < 0:
        raise ValueError(f"need at least 1 action and no negative warm-up, got {actions} and {warmup}")
    client.reset()
    timings = []
    for step in range(warmup + actions):
        client.act(observation)
        if step >= warmup and client.act_timing is not None:
            timings.append(client.act_timing)
    return timings


def split(timing: ActTiming) -> dict[str, float]:
    """Milliseconds by part; they add up to `round_trip_ms`. The policy's own stages stand under their own names."""
    server = timing.server
    stages = timing.stage_ms
    return {
        "encode picture": timing.encode_ms,
        "network": timing.network_ms,
        "queue": server.queue_ms,
        "decode picture": server.decode_ms,
        **stages,
        "rest of policy": server.policy_ms - sum(stages.values()),
        "rest of server": server.total_ms - server.queue_ms - server.decode_ms - server.policy_ms,
    }


def summarize(timings: Sequence[ActTiming]) -> list[LatencyRow]:
    """The round trip, then its parts in the order in which they happen. A stage that an action lacks counts as 0 ms."""
    parts = [split(timing) for timing in timings]
    names = list(dict.fromkeys(name for part in parts for name in part))
    ends = ("rest of policy", "rest of server")
    names = [name for name in names if name not in ends] + list(ends)
    rows = [_row("round trip", [timing.round_trip_ms for timing in timings])]
    return rows + [_row(name, [part.get(name, 0.0) for part in parts]) for name in names]


def _row(part: str, milliseconds: Sequence[float]) -> LatencyRow:
    p50, p95, p99 = np.percentile(milliseconds, [50, 95, 99])
    return LatencyRow(part, float(p50), float(p95), float(p99), float(np.mean(milliseconds)))
