#!/usr/bin/env python3
"""Train a drafter for a policy: a head that reads its features, or a small model that sees for itself.

scripts/train_drafter.py --target policy/pretrained/libero --frames demos --kind eagle
scripts/train_drafter.py --target runs/mine --frames my_data:episodes --kind draft-vla --minutes 20

No labels are needed: a drafter learns what its target does. Ctrl-C or SIGTERM saves and ends it, and the same command
goes on from there; a second one ends it at once.
"""

from __future__ import annotations

import json
from pathlib import Path

from jsonargparse import ArgumentParser

from policy.training.drafter_config import DrafterTrainingConfig
from policy.training.drafter_training import DrafterTraining
from policy.training.option_help import describe_options
from policy.training.stopping import stopped_by_signals


def plot_metrics(metrics_file: Path) -> Path:
    """Losses, tokens per pass over training, and the last acceptance by position, beside the metrics."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    records = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    steps, last = [record["step"] for record in records], records[-1]
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for name in dict.fromkeys(name for record in records for name in record["losses"]):
        axes[0].plot(steps, [record["losses"].get(name) for record in records], label=name)
    axes[0].set(title="loss of the training batch", xlabel="step")
    axes[1].plot(steps, [record["length"] for record in records], label="exact")
    axes[1].plot(steps, [record["length_relaxed"] for record in records], label="within 9 bins")
    axes[1].set(title="tokens per pass, held-out episodes", xlabel="step", ylim=(1, 7))
    positions = range(last["start"] + 1, last["start"] + 1 + len(last["kept"]))
    for name, label in (("right", "right by itself"), ("kept", "kept"), ("kept_relaxed", "kept, within 9 bins")):
        axes[2].plot(positions, last[name], marker="o", label=label)
    axes[2].set(title="acceptance by position", xlabel="action token", ylim=(0, 1))
    for axis in axes:
        axis.legend()
    figure.savefig(metrics_file.with_suffix(".png"), dpi=110)
    return metrics_file.with_suffix(".png")


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", action="config", help="YAML with any of the options below")
    parser.add_class_arguments(DrafterTrainingConfig)
    describe_options(parser, DrafterTrainingConfig)
    return parser


def main() -> None:
    parser = make_parser()
    values = parser.instantiate(parser.parse_args())
    values.pop("config", None)
    try:
        training = DrafterTraining(DrafterTrainingConfig(**values), lambda line: print(line, flush=True))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"cannot train: {error}") from None
    with stopped_by_signals(training):
        score = training.run()
    if training.progress < 1:
        print(f"stopped at {training.progress:.1%}; the same command goes on from there")
    if training.step == 0:
        return
    print(f"drafter: {training.output}")
    if training.metrics_file.is_file():
        print(f"plot:    {plot_metrics(training.metrics_file)}")
    print(f"a pass gains {score.length:.2f} tokens with it, {score.length_relaxed:.2f} within 9 bins")


if __name__ == "__main__":
    main()
