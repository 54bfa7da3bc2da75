#!/usr/bin/env python3
"""Average the weights of policies that were trained from one another; often better than each of them.

python scripts/average_policies.py runs/one/policy runs/two/policy --output runs/mean
python scripts/average_policies.py runs/one/policy runs/two/policy --shares 2 1 --output runs/mean
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from policy.openvla.checkpoint import locate_checkpoint
from policy.training.averaging import average_checkpoints


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", type=str, help="directories or hub ids")
    parser.add_argument("--shares", nargs="+", type=float, default=[], help="of each; equal by default")
    parser.add_argument("--output", type=Path, required=True, help="new directory")
    return parser


def main() -> None:
    chosen = make_parser().parse_args()
    try:
        sources = [locate_checkpoint(checkpoint) for checkpoint in chosen.checkpoints]
        parts = average_checkpoints(sources, chosen.shares or [1.0] * len(sources), chosen.output)
    except ValueError as error:
        raise SystemExit(f"cannot average: {error}") from None
    for source, (digest, share) in zip(sources, parts.items(), strict=True):
        print(f"{share:.3f}  {digest[:12]}  {source}")
    print(f"written to {chosen.output}")


if __name__ == "__main__":
    main()
