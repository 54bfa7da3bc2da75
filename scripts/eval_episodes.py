"""Evaluate a policy on LIBERO and print success rates with their intervals.

    python scripts/eval_episodes.py --suites libero_object --endpoint tcp://127.0.0.1:5555 --output runs/object.jsonl
    python scripts/eval_episodes.py --policy expert --initial-states 0-4 --workers 2 --output runs/expert.jsonl
    python scripts/eval_episodes.py --config configs/eval/eager.yaml --checkpoint DIR --output runs/eager.jsonl

Run it again with the same output to go on where it stopped; episodes that ended in errors are then repeated.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from bridge.errors import BridgeError
from policy.results import write_result
from sim.clock import ClockName
from sim.episode_worker import WorkerSetupError
from sim.evaluation import EvaluationConfig, evaluate
from sim.protocol import Protocol
from sim.sources import PolicySource, RemotePolicy, ScriptedExpert
from sim.suites import STEP_LIMITS, parse_numbers
from sim.summary import conditions, headline, summarise, summary_table
from sim.timing import Timing
from sim.video import VideoUnavailableError


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    policy = parser.add_argument_group("policy (give one of the first three)")
    policy.add_argument("--endpoint", type=str, default="", help="address of a running policy server")
    policy.add_argument("--checkpoint", type=str, default="", help="directory or hub id, loaded in this process")
    policy.add_argument("--policy", type=str, default="", help='"expert": the scripted one that reads the simulator')
    policy.add_argument("--unnorm-key", type=str | None, default=None, help="with --checkpoint: dataset statistics")
    policy.add_argument("--device", type=str, default="auto", help="with --checkpoint")
    policy.add_argument("--dtype", type=str, default="auto", help="with --checkpoint: auto, float32 or bfloat16")
    policy.add_argument(
        "--decoding",
        type=str,
        default="autoregressive",
        help="with --checkpoint: YAML file, or name in configs/decoding",
    )
    policy.add_argument("--capture", type=bool, default=True, help="with --checkpoint: CUDA graphs")
    policy.add_argument("--acceleration", type=str, default="none", help="with --checkpoint: joined, compiled or fp8")
    episodes = parser.add_argument_group("episodes")
    episodes.add_argument("--suites", nargs="+", type=str, default=list(STEP_LIMITS)[:3], help="LIBERO(-PRO) suites")
    episodes.add_argument("--tasks", type=str, default="0-9", help="numbers in each suite, e.g. 0-9 or 0,3,5-7")
    episodes.add_argument("--initial-states", type=str, default="0-49", help="official ones, e.g. 0-49")
    episodes.add_argument("--protocol", type=Protocol, default={}, help="deviations from the official protocol")
    episodes.add_argument("--workers", type=int, default=1, help="simulator processes, one per core")
    episodes.add_argument(
        "--render-devices", nargs="+", type=int, default=[], help="EGL devices that the workers take turns on"
    )
    timing = parser.add_argument_group("time (see docs/latency.md)")
    timing.add_argument("--clock", type=ClockName, default="lock-step", help="lock-step, charged or real-time")
    timing.add_argument(
        "--latency", type=str, default="measured", help="charged: measured, 150, lognormal:P50,P95 or trace:FILE"
    )
    timing.add_argument("--hold", type=float, default=0.0, help="meanwhile: 0 stands still, 1 repeats, between fades")
    timing.add_argument("--max-age-ms", type=float, default=math.inf, help="older actions are not executed")
    timing.add_argument("--pipelined", type=bool, default=False, help="look again while an action is executed")
    timing.add_argument("--timing-seed", type=int, default=0, help="of random latencies")
    results = parser.add_argument_group("results")
    results.add_argument("--output", type=Path, required=True, help="JSONL file, one line per episode")
    results.add_argument("--summary", type=Path | None, default=None, help="JSON file for the table")
    results.add_argument("--video", type=Path | None, default=None, help="folder for films")
    results.add_argument("--videos-per-task", type=int, default=1, help="films of the first episodes of each task")
    return parser


def main() -> None:
    parser = make_parser()
    chosen = parser.parse_args()
    if sum(map(bool, (chosen.endpoint, chosen.checkpoint, chosen.policy))) != 1:
        parser.error("give exactly one of --endpoint, --checkpoint and --policy")
    if chosen.policy not in ("", "expert"):
        parser.error(f"--policy {chosen.policy!r}: the only one known by name is 'expert'")
    try:
        config = EvaluationConfig(
            output=chosen.output,
            suites=tuple(chosen.suites),
            tasks=parse_numbers(chosen.tasks),
            init_states=parse_numbers(chosen.initial_states),
            workers=chosen.workers,
            protocol=Protocol(**chosen.protocol.as_dict()),
            timing=timing_of(chosen),
            videos=chosen.video,
            videos_per_task=chosen.videos_per_task,
            render_devices=tuple(chosen.render_devices),
        )
    except ValueError as error:
        parser.error(str(error))
    try:
        with policy_source(chosen) as source:
            records = evaluate(config, source)
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; run the same command again to go on from {config.output}") from None
    except (ValueError, WorkerSetupError, VideoUnavailableError, BridgeError) as error:
        raise SystemExit(f"cannot evaluate: {error}") from None
    summaries = summarise(records)
    first = records[0]
    title = ", ".join((first.policy_id, f"{first.decoder} decoding", f"{first.clock} clock", *first.timing))
    if first.privileged:
        title += "; privileged: reads the simulator's state, no camera policy"
    console = Console()
    console.print(summary_table(summaries, title))
    console.print(f"protocol: official, but {'; '.join(first.protocol_deviations)}")
    if chosen.summary:
        shared = conditions(records)
        write_result(chosen.summary, [summary.row() | shared for summary in summaries], headline(summaries))


def timing_of(chosen: Namespace) -> Timing:
    """The options on time as one object. Raises ValueError where they do not go together."""
    return Timing(
        chosen.clock, chosen.latency, chosen.hold, chosen.max_age_ms, chosen.pipelined, seed=chosen.timing_seed
    )


@contextlib.contextmanager
def policy_source(chosen: Namespace) -> Iterator[PolicySource]:
    """What the workers get their policy from; a checkpoint is served from this process, so all workers share it."""
    if chosen.policy:
        yield ScriptedExpert()
        return
    if chosen.endpoint:
        yield RemotePolicy(chosen.endpoint)
        return
    from bridge.server import PolicyServer
    from policy.acceleration.plan import preset
    from policy.decoding.config import DecodingConfig
    from policy.runtime import Policy

    decoding, acceleration = DecodingConfig.load(chosen.decoding), preset(chosen.acceleration)

    def load(report: object) -> Policy:
        return Policy.load(
            chosen.checkpoint,
            unnorm_key=chosen.unnorm_key,
            device=chosen.device,
            dtype=chosen.dtype,
            decoding=decoding,
            capture=chosen.capture,
            acceleration=acceleration,
        )

    with PolicyServer(load, endpoint="tcp://127.0.0.1:*", max_batch=chosen.workers) as server:
        try:
            server.wait_ready()
        except Exception as error:  # its traceback has been logged
            raise SystemExit(f"cannot load {chosen.checkpoint}: {error}") from None
        yield RemotePolicy(server.endpoint)


if __name__ == "__main__":
    main()
