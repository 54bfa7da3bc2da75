"""Make a latency trace of an evaluation's episodes, to charge other policies and machines with it.

    python scripts/eval_episodes.py --endpoint tcp://127.0.0.1:5555 --initial-states 0 --output runs/server.jsonl
    python scripts/record_latency.py runs/server.jsonl --output configs/eval/traces/server.json

The evaluation is to have a single worker: with more, decisions queue for the policy and the trace holds their waiting.
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console

from sim.latency import trace_of
from sim.records import Latency, read_records


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", type=Path, help="JSONL file of one run on the lock-step or the real-time clock")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the trace")
    parser.add_argument("--note", type=str, default="", help="what else to remember of it")
    return parser


def main() -> None:
    chosen = make_parser().parse_args()
    try:
        trace = trace_of(read_records(chosen.records), chosen.note)
    except (OSError, ValueError) as error:
        raise SystemExit(f"cannot make a trace: {error}") from None
    trace.save(chosen.output)
    latency = Latency.of(trace.milliseconds)
    figures = f"p50 {latency.p50_ms:.1f} ms, p95 {latency.p95_ms:.1f} ms, p99 {latency.p99_ms:.1f} ms"
    Console().print(f"{len(trace.milliseconds)} decisions, {figures}: {chosen.output}", highlight=False)


if __name__ == "__main__":
    main()
