#!/usr/bin/env python3
"""Compare this code with recorded outputs of the original OpenVLA code, quantity by quantity.

Exits with 1 when anything lies outside its tolerance, with 2 when there is nothing to compare.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from policy.hardware import DTYPES, choose_device, keep_float32
from policy.openvla.checkpoint import CONFIG_FILE, load_checkpoint, locate_checkpoint
from policy.parity.golden import TOLERANCES, GoldenSet, Recording, Report
from policy.parity.inputs import check_inputs
from policy.parity.network import (
    Subject,
    check_libero_predictions,
    check_prediction,
    check_training_examples,
    check_vision,
)
from policy.types import Action, DecodeTrace


@torch.inference_mode()
def compare(checkpoint: Path, golden: GoldenSet, device: torch.device, dtype: str) -> Report:
    """All checks that the golden set has recordings for, its variants included."""
    report, tolerances = Report(), TOLERANCES[dtype]
    keep_float32()
    model = load_checkpoint(checkpoint, device, DTYPES[dtype])
    subject = Subject.of(model, checkpoint, checkpoint / CONFIG_FILE, tolerances)
    check_inputs(report, golden, checkpoint, model.config.action_vocabulary)
    check_vision(Recording(report, golden, "arrays/vision.npz", "vision"), subject)
    check_prediction(Recording(report, golden, "arrays/predict.npz", "predict"), subject)
    check_libero_predictions(Recording(report, golden, "arrays/libero_path.npz", "LIBERO"), subject)
    check_training_examples(Recording(report, golden, "arrays/training_examples.npz", "training"), subject)
    check_simulator_actions(Recording(report, golden, "arrays/libero_path.npz", "LIBERO"))
    for variant in golden.variants:
        config_file = variant / CONFIG_FILE
        model = load_checkpoint(checkpoint, device, DTYPES[dtype], config_file)
        subject = Subject.of(model, checkpoint, config_file, tolerances)
        check_prediction(Recording(report, golden, f"{variant.name}/predict.npz", variant.name), subject)
    return report


def check_simulator_actions(recording: Recording) -> None:
    """What the simulator is sent for a recorded action. The policy is not concerned, so this needs the `sim` package's
    extra.
    """
    try:
        from sim.waiting import simulator_action
    except ModuleNotFoundError:
        return
    if (actions := recording.array("actions_libero_spatial")) is not None:
        sent = [simulator_action(Action(values, np.zeros(0, np.int64), DecodeTrace(0))) for values in actions]
        recording.close("simulator actions", "env_actions", np.array(sent), 1e-9)


def show(report: Report, golden: GoldenSet, console: Console) -> None:
    table = Table("check", "rows", "deviation", "tolerance", "", title=f"Parity with {golden.directory}")
    for check in report.checks.values():
        verdict = "[green]ok" if check.passed else "[red]differs"
        table.add_row(check.name, str(check.rows), f"{check.deviation:.3g}", f"{check.tolerance:.3g}", verdict)
    console.print(table)
    for title, names in (
        ("not recorded, so not compared", golden.missing),
        ("recorded, but not compared", golden.unread()),
    ):
        for name in sorted(names):
            console.print(f"{title}: {name}", highlight=False)
    for check in report.failed:
        console.print(f"[red]{check.name}[/]: first difference at {check.detail}", highlight=False)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="checkpoint directory or hub id")
    parser.add_argument("--golden", required=True, type=Path, help="directory with golden.json, arrays/ and images/")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="also decides the tolerances")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    return parser


def main(arguments_given: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(arguments_given)
    console = Console()
    try:
        golden = GoldenSet(arguments.golden)
        checkpoint, device = locate_checkpoint(arguments.checkpoint), choose_device(arguments.device)
        report = compare(checkpoint, golden, device, arguments.dtype)
    except (ValueError, FileNotFoundError) as error:
        console.print(f"cannot compare: {error}", style="red", markup=False, highlight=False)
        return 2
    show(report, golden, console)
    if not report.checks:
        console.print("[red]The golden set holds nothing that could be compared.")
        return 2
    console.print(f"{len(report.checks) - len(report.failed)} of {len(report.checks)} checks passed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
