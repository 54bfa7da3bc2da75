#!/usr/bin/env python3
"""Widen a small policy to a larger network that acts the same, for measuring at a real network's cost.

    python scripts/widen_policy.py --output runs/box-7b --shape 7b
    python scripts/widen_policy.py --output runs/box-twice --dinov2_width 512 --siglip_width 288 --text_width 512

The first has the tensors of the published openvla-7b and takes 15.1 GB.
"""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser
from rich.console import Console

from policy.hardware import DTYPES
from policy.openvla.checkpoint import locate_checkpoint
from policy.training.widen import OPENVLA_7B_SIZES, TargetSizes
from policy.training.widened_checkpoint import SHARD_BYTES, widen_checkpoint


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=str, default="policy/pretrained/libero", help="directory or hub id")
    parser.add_argument("--output", type=Path, required=True, help="new directory")
    parser.add_argument("--shape", type=Literal["7b"] | None, default=None, help="instead of single sizes")
    parser.add_class_arguments(TargetSizes)
    parser.add_argument("--dtype", type=str, choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--max-shard-gb", type=float, default=SHARD_BYTES / 1e9, help="also the memory it takes")
    return parser


def main() -> None:
    parser = make_parser()
    chosen = parser.parse_args()
    console = Console()
    given = {field.name: size for field in fields(TargetSizes) if (size := chosen[field.name]) is not None}
    if chosen.shape and given:
        parser.error(f"--shape {chosen.shape} gives all sizes; leave out either it or {', '.join(given)}")
    sizes = OPENVLA_7B_SIZES if chosen.shape else TargetSizes(**given)
    started = time.monotonic()

    def report(file: Path) -> None:
        console.print(f"{time.monotonic() - started:6.1f} s  {file.name}  {file.stat().st_size / 1e9:.2f} GB")

    try:
        widen_checkpoint(
            locate_checkpoint(chosen.checkpoint),
            chosen.output,
            sizes,
            DTYPES[chosen.dtype],
            round(chosen.max_shard_gb * 1e9),
            report,
        )
    except ValueError as error:
        raise SystemExit(f"cannot widen: {error}") from None
    console.print(f"written to {chosen.output}")


if __name__ == "__main__":
    main()
