#!/usr/bin/env python3
"""Train a small OpenVLA-shaped policy on recorded demonstrations.

scripts/train_policy.py --config configs/policy/box.yaml --demonstrations [demos/] --output runs/box \\
    --evaluate [libero_object]    # then 100 episodes in closed loop
torchrun --standalone --nproc-per-node 2 scripts/train_policy.py ...    # the same on two GPUs

Ctrl-C or SIGTERM saves and ends it, and the same command goes on from there; a second one ends it at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from jsonargparse import ArgumentParser

from policy.training.behavior_cloning import BehaviorCloning
from policy.training.config import TrainingConfig, UnknownInstructionError
from policy.training.option_help import describe_options
from policy.training.stopping import stopped_by_signals

_EVALUATE = Path(__file__).resolve().parent / "eval_episodes.py"


def evaluate(checkpoint: Path, suites: list[str], states: str, workers: int) -> int:
    """Closed-loop episodes from official initial states; records and summary land beside the checkpoint."""
    output = checkpoint.parent / "evaluation.jsonl"
    command = [sys.executable, str(_EVALUATE), "--checkpoint", str(checkpoint), "--suites", *suites]
    command += ["--initial-states", states, "--workers", str(workers), "--output", str(output)]
    return subprocess.run([*command, "--summary", str(output.with_suffix(".json"))], check=False).returncode


def plot_metrics(run: Path) -> Path:
    """Losses and learning rate over training steps, from `metrics.jsonl` to `metrics.png`."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records]
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for axis, name in zip(axes[:2], ("pose", "gripper"), strict=True):
        axis.plot(steps, [record["train"][name] for record in records], label="training batch", alpha=0.5)
        axis.plot(
            steps, [(record["held_out"] or {}).get(name) for record in records], label="held out, averaged weights"
        )
        axis.set(title=f"{name} cross-entropy", xlabel="step")
        axis.legend()
    axes[2].plot(steps, [record["frames"] for record in records])
    axes[2].set(title="frames in the store", xlabel="step")
    figure.savefig(run / "metrics.png", dpi=110)
    return run / "metrics.png"


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", action="config", help="YAML with any of the options below")
    parser.add_class_arguments(TrainingConfig)
    describe_options(parser, TrainingConfig)
    parser.add_argument("--evaluate", type=list[str], default=[], help="suites for episodes in closed loop at the end")
    parser.add_argument("--evaluation_states", type=str, default="0-9", help="official initial states for them")
    parser.add_argument("--evaluation_workers", type=int, default=2, help="simulator processes for them")
    return parser


def main() -> None:
    parser = make_parser()
    values = parser.parse_args()
    config = parser.instantiate(values)
    config.pop("config", None)
    suites, states, workers = (config.pop(name) for name in ("evaluate", "evaluation_states", "evaluation_workers"))
    try:
        training = BehaviorCloning(TrainingConfig(**config))
    except (ValueError, OSError) as error:
        raise SystemExit(f"cannot train: {error}") from None
    try:
        with stopped_by_signals(training):
            directory = training.run()
    except UnknownInstructionError as error:
        raise SystemExit(f"cannot go on: {error}") from None
    if not training.replicas.first:
        return
    if training.progress < 1:
        print(f"stopped at {training.progress:.1%}; the same command goes on from there")
    print(f"policy: {directory}\nplot:   {plot_metrics(directory.parent)}", flush=True)
    if suites and training.progress >= 1:
        sys.exit(evaluate(directory, suites, states, workers))


if __name__ == "__main__":
    main()
