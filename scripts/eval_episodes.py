"""Evaluate a policy on LIBERO and print success rates with their intervals.

    python scripts/eval_episodes.py --suites libero_object --endpoint tcp://127.0.0.1:5555 --output runs/object.jsonl
    python scripts/eval_episodes.py --policy expert --initial-states 0-4 --workers 2 --output runs/expert.jsonl
    python scripts/eval_episodes.py --config configs/eval/eager.yaml --checkpoint DIR --output runs/eager.jsonl

Run it again with the same output to go on where it stopped; episodes that ended in errors are then repeated.
"""

from __future__ import annotations

import math
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from policy.results import write_result
from sim.clock import ClockName
from sim.command_line import add_pool_options, add_server_options, plain_ending, served_checkpoint
from sim.evaluation import EvaluationConfig, dealt_out, evaluate_all
from sim.newest_records import of_other_settings
from sim.policy_hosts import PolicyHost, StandingPolicy
from sim.protocol import Protocol
from sim.records import Outcome, read_records
from sim.sources import RemotePolicy, ScriptedExpert
from sim.suites import STEP_LIMITS, parse_numbers
from sim.summary import conditions, headline, summarise, summary_table
from sim.timing import Timing


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    policy = parser.add_argument_group("policy (give --endpoint, --policy or --checkpoint)")
    policy.add_argument("--endpoint", type=str, default="", help="address of a running policy server")
    policy.add_argument("--policy", type=str, default="", help='"expert": the scripted one that reads the simulator')
    policy.add_argument(
        "--decoding",
        type=str,
        default="autoregressive",
        help="with --checkpoint: YAML file, or name in configs/decoding",
    )
    add_server_options(parser, checkpoint="")
    add_pool_options(parser)
    episodes = parser.add_argument_group("episodes")
    episodes.add_argument("--suites", nargs="+", type=str, default=list(STEP_LIMITS)[:3], help="LIBERO(-PRO) suites")
    episodes.add_argument("--tasks", type=str, default="0-9", help="numbers in each suite, e.g. 0-9 or 0,3,5-7")
    episodes.add_argument("--initial-states", type=str, default="0-49", help="official ones, e.g. 0-49")
    episodes.add_argument("--protocol", type=Protocol, default={}, help="deviations from the official protocol")
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
            time_limit=chosen.time_limit,
            render_devices=tuple(chosen.render_devices),
        )
    except ValueError as error:
        parser.error(str(error))
    with plain_ending("evaluate", config.output):
        parts = evaluate_all(dealt_out(config, hosts_of(chosen)), live=chosen.servers)
    records = [record for part in parts for record in part]
    records.sort(key=lambda record: (config.suites.index(record.suite), record.task, record.init_state))
    if not records:
        raise SystemExit(f"{config.output} has no episodes yet; give more time")
    summaries = summarise(records)
    shared = conditions(records)
    title = ", ".join(
        (shared["policy"], f"{shared['decoder']} decoding", f"{shared['clock']} clock", *shared["timing"])
    )
    if shared["privileged"]:
        title += "; privileged: reads the simulator's state, no camera policy"
    console = Console()
    console.print(summary_table(summaries, title))
    console.print(f"protocol: official, but {'; '.join(shared['protocol_deviations'])}")
    if others := of_other_settings(records, read_records(config.output)):
        told = conditions(list(others.values()))
        console.print(
            f"not counted: {len(others)} of the same episodes in {config.output} with other settings "
            f"({told['dtype']}; {told['image_path']} images; decoding {told['decoding_digest'] or 'plain'})"
        )
    if errors := [record.error for record in records if record.outcome is Outcome.ERROR]:
        console.print(f"{len(errors)} errors, to be repeated by the same command; the last: {errors[-1]}")
    if chosen.summary:
        of_suite = {suite: conditions([r for r in records if r.suite == suite]) for suite in config.suites}
        rows = [summary.row() | of_suite[summary.suite] for summary in summaries]
        write_result(chosen.summary, rows, headline(summaries))


def timing_of(chosen: Namespace) -> Timing:
    """The options on time as one object. Raises ValueError where they do not go together."""
    return Timing(
        chosen.clock, chosen.latency, chosen.hold, chosen.max_age_ms, chosen.pipelined, seed=chosen.timing_seed
    )


def hosts_of(chosen: Namespace) -> list[PolicyHost]:
    """Who serves the policy: whoever does already, or servers that the tasks are dealt out to."""
    if chosen.policy:
        return [StandingPolicy(ScriptedExpert())]
    if chosen.endpoint:
        return [StandingPolicy(RemotePolicy(chosen.endpoint))]
    from policy.decoding.config import DecodingConfig

    served, decoding = served_checkpoint(chosen), DecodingConfig.load(chosen.decoding)
    return [*served.hosts(chosen.servers, decoding, chosen.output.with_suffix(""))]


if __name__ == "__main__":
    main()
