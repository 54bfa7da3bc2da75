#!/usr/bin/env python3
"""Time a policy server as its client sees it, and show where the milliseconds go.

scripts/ping_server.py --endpoint tcp://127.0.0.1:5555 --actions 200
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from bridge.client import PolicyClient
from bridge.endpoint import DEFAULT_ENDPOINT
from bridge.errors import BridgeError
from bridge.latency import LatencyRow, summarize, time_actions
from policy.results import write_result
from policy.types import Observation, PolicySpec


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--endpoint", type=str, default=DEFAULT_ENDPOINT)
    parser.add_argument("--actions", type=int, default=200, help="actions to time")
    parser.add_argument("--warmup", type=int, default=20, help="actions before the first that is timed")
    parser.add_argument("--side", type=int, default=256, help="side of the random picture, in pixels")
    parser.add_argument("--encoding", type=str, default="raw", help="raw or jpeg")
    parser.add_argument("--instruction", type=str, default="pick up the milk and place it in the basket")
    parser.add_argument("--timeout-s", type=float, default=10.0, help="longest wait for one action")
    parser.add_argument("--output", type=Path | None, default=None, help="JSON file for the result")
    return parser


def show(rows: Sequence[LatencyRow], spec: PolicySpec, title: str) -> None:
    table = Table(title=title, caption=f"{spec.policy_id}, {spec.decoder} decoding, {spec.dtype} on {spec.device}")
    table.add_column("milliseconds")
    for column in ("p50", "p95", "p99", "mean"):
        table.add_column(column, justify="right")
    for index, row in enumerate(rows):
        cells = [f"{value:.2f}" for value in (row.p50_ms, row.p95_ms, row.p99_ms, row.mean_ms)]
        table.add_row(row.part if index == 0 else f"  {row.part}", *cells, style="bold" if index == 0 else None)
    Console().print(table)


def main() -> int:
    arguments = make_parser().parse_args()
    image = np.random.default_rng(0).integers(0, 256, (arguments.side, arguments.side, 3), np.uint8)
    try:
        observation = Observation(image, arguments.instruction)
        with PolicyClient(arguments.endpoint, timeout_s=arguments.timeout_s, encoding=arguments.encoding) as client:
            rows = summarize(time_actions(client, observation, arguments.actions, arguments.warmup))
            spec = client.spec
    except (BridgeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    picture = f"{arguments.side}x{arguments.side} {arguments.encoding}"
    show(rows, spec, f"{arguments.actions} actions, {picture} picture, {arguments.endpoint}")
    if arguments.output is not None:
        headline = {"round_trip_p50_ms": rows[0].p50_ms, "round_trip_p99_ms": rows[0].p99_ms, "picture": picture}
        context = {"policy": spec.policy_id, "device": spec.device, "dtype": spec.dtype, "decoder": spec.decoder}
        write_result(arguments.output, [context | asdict(row) for row in rows], headline)
    return 0


if __name__ == "__main__":
    sys.exit(main())
