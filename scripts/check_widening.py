#!/usr/bin/env python3
"""Compare a policy widened to OpenVLA-7B's sizes with the policy itself, token by token, on logged frames.

    python scripts/check_widening.py demos --device cuda --output docs/results/widening-agreement.json
    python scripts/check_widening.py demos --dinov2_width 512 --siglip_width 288 --text_width 512

Both decode plainly, in float32 and in bfloat16. Exits with 1 where a decision in float32 differs that was no near-tie.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from policy.decoding.agreement import Agreement, Reference
from policy.decoding.replay import replay
from policy.decoding.replay_target import ReplayTarget, add_replay_options, replay_paths
from policy.openvla.config import ACTION_DIMENSIONS
from policy.results import write_result
from policy.training.widen import OPENVLA_7B_SIZES, TargetSizes, widened

DTYPES = ("float32", "bfloat16")
# Logits of two orders of summation in float32 differ by less.
NEAR_TIE = 1e-3


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_replay_options(parser)
    parser.add_argument("--side-by-side", type=int, default=8, help="episodes in one batch")
    parser.add_class_arguments(TargetSizes)
    return parser


def main() -> int:
    chosen, console = make_parser().parse_args(), Console()
    try:
        paths = replay_paths(chosen)
        decoded = {
            (shape, dtype): decode(paths, chosen, shape, dtype) for dtype in DTYPES for shape in ("small", "wide")
        }
    except (ValueError, FileNotFoundError) as error:
        console.print(f"cannot compare: {error}", style="red", markup=False, highlight=False)
        return 2
    rows = []
    for name, dtype, other, reference in (
        ("wide and small, float32", "float32", ("wide", "float32"), ("small", "float32")),
        ("wide and small, bfloat16", "bfloat16", ("wide", "bfloat16"), ("small", "bfloat16")),
        ("small, bfloat16 and float32", "bfloat16", ("small", "bfloat16"), ("small", "float32")),
        ("wide, bfloat16 and float32", "bfloat16", ("wide", "bfloat16"), ("wide", "float32")),
    ):
        rows.append(compared(name, decoded[other], decoded[reference]) | {"dtype": dtype})
    console.print(table_of(rows))
    if chosen.output is not None:
        headline = {f"{row['dtype']}_token_agreement": row["token_agreement"] for row in rows[:2]}
        headline |= {f"{row['dtype']}_decision_agreement": row["decision_agreement"] for row in rows[:2]}
        write_result(chosen.output, rows, headline)
    return int((rows[0]["margin_max_at_differences"] or 0.0) > NEAR_TIE)


@torch.inference_mode()
def decode(paths: list[Path], chosen: Namespace, shape: str, dtype: str) -> list[Reference]:
    """Plain decoding of all frames, batch by batch, as bins: the two number their tokens differently."""
    target = ReplayTarget.load(Namespace(**{**vars(chosen), "dtype": dtype}))
    given = TargetSizes(**{field.name: chosen[field.name] for field in fields(TargetSizes)})
    sizes = OPENVLA_7B_SIZES if given == TargetSizes() else given
    if shape == "wide":
        target = replace(target, model=widened(target.model, sizes))
    model = target.model
    groups = [paths[first : first + chosen.side_by_side] for first in range(0, len(paths), chosen.side_by_side)]
    batches = (replay(model, [target.episode(path) for path in group]) for group in groups)
    decoded = [Reference.of(model, prompts) for group in batches for prompts, _ in group]
    found = [replace(batch, ids=model.config.action_vocabulary - 1 - batch.ids) for batch in decoded]
    del target, model
    gc.collect()
    torch.cuda.empty_cache()
    return found


def compared(name: str, found: list[Reference], reference: list[Reference]) -> dict:
    """Agreement and margins; the reference's median margin over all decisions tells how near ties usually are."""
    agreement = Agreement(name)
    for own, other in zip(found, reference, strict=True):
        agreement.add(own.ids, [ACTION_DIMENSIONS] * len(own.ids), other)
    margins = np.concatenate([batch.margins for batch in reference])
    return agreement.row() | {
        "margin_median": float(np.median(margins)),
        "margin_p10": float(np.percentile(margins, 10)),
    }


def table_of(rows: list[dict]) -> Table:
    table = Table("compared", "actions", "equal tokens", "equal decisions", "margins: median", "median where different")
    for row in rows:
        rates = (f"{100 * row[name]:.2f} %" for name in ("token_agreement", "decision_agreement"))
        margins = (row["margin_median"], row["margin_median_at_differences"])
        shown = ("" if margin is None else f"{margin:.4f}" for margin in margins)
        table.add_row(row["decoding"], str(row["actions"]), *rates, *shown)
    return table


if __name__ == "__main__":
    sys.exit(main())
