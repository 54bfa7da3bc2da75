"""Compare speculative decoding under exact acceptance with plain decoding, token by token, on logged frames.

    python scripts/check_decoding.py demos --dtype float32
    python scripts/check_decoding.py demos --dtype bfloat16 --device cuda --output docs/results/decoding-agreement.json

Runs every drafter, several tree sizes, every tail and drafts that are right, wrong and random. Exits with 1 where a
token differs in float32; in bfloat16 the rates and the margins of the differing decisions are the result.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import track
from rich.table import Table

from policy.decoding.acceptance.exact import Exact
from policy.decoding.agreement import Agreement, Reference, Scripted, compare
from policy.decoding.config import DecodingConfig
from policy.decoding.replay import replay
from policy.decoding.replay_target import ReplayTarget, add_replay_options, replay_paths
from policy.decoding.speculative import SpeculativeDecoder, Tail
from policy.drafting.placement import Placement
from policy.drafting.registry import DRAFTERS
from policy.results import write_result

ALL = tuple(DRAFTERS)
TREES: tuple[tuple[int, Tail], ...]
TREES = ((32, "tree"), (32, "jacobi"), (32, "plain"), (6, "tree"), (1, "jacobi"), (96, "tree"))
CONFIGS = (
    DecodingConfig.load("exact"),
    *(DecodingConfig(f"all drafters, tree of {nodes}, tail {tail}", drafters=ALL, nodes=nodes, tail=tail)
      for nodes, tail in TREES),
    *(DecodingConfig(f"{name}, 16 nodes, tree", drafters=(name,), nodes=16) for name in ALL),
    DecodingConfig("no drafters, jacobi", drafters=(), tail="jacobi"),
)  # fmt: skip
ADVERSARIES = ("right", "wrong", "random")


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_replay_options(parser)
    parser.add_argument("--frames", type=int, default=2000, help="stop after so many")
    parser.add_argument("--side-by-side", type=int, default=8, help="episodes in one batch")
    return parser


def main() -> int:
    chosen, console = make_parser().parse_args(), Console()
    try:
        if chosen.side_by_side < 1:
            raise ValueError(f"--side-by-side is {chosen.side_by_side}; it must be at least 1")
        agreements, margin, dtype = check(replay_paths(chosen), chosen, console)
    except (ValueError, FileNotFoundError) as error:
        console.print(f"cannot compare: {error}", style="red", markup=False, highlight=False)
        return 2
    rows = [agreement.row() for agreement in agreements]
    console.print(table_of(rows))
    console.print(f"median margin between the best two logits over all decisions: {margin:.3f}")
    worst = min(row["action_agreement"] for row in rows)
    if chosen.output is not None:
        shared = {"dtype": dtype, "margin_median": margin}
        write_result(chosen.output, [row | shared for row in rows], {f"{dtype}_action_agreement": worst})
    return 1 if dtype == "float32" and worst < 1 else 0


@torch.inference_mode()
def check(paths: list[Path], chosen: Namespace, console: Console) -> tuple[list[Agreement], float, str]:
    """The agreements of all decoders, the reference's median margin and the name of the dtype."""
    target = ReplayTarget.load(chosen)
    model, material, rule, random = target.model, target.material(), Exact(), np.random.default_rng(0)
    scripted = [Scripted(name) for name in ADVERSARIES]
    decoders = [config.build(material) for config in CONFIGS]
    decoders += [
        SpeculativeDecoder(
            model, rule, [drafter], Placement(16, 0.0, rule.reach), name=f"{drafter.name} drafts, 16 nodes"
        )
        for drafter in scripted
    ]
    agreements, margins = [Agreement(decoder.name) for decoder in decoders], []
    groups = [paths[first : first + chosen.side_by_side] for first in range(0, len(paths), chosen.side_by_side)]
    for group in track(groups, "episodes, in groups", console=console):
        if agreements[0].actions >= chosen.frames:
            break
        for prompts, sessions in replay(model, [target.episode(path) for path in group]):
            reference = Reference.of(model, prompts)
            margins.append(reference.margins)
            for drafter in scripted:
                drafter.fill(np.clip(model.config.action_vocabulary - 1 - reference.ids, 0, 255), random)
            for agreement, decoder in zip(agreements, decoders, strict=True):
                compare(agreement, decoder, prompts, sessions, reference)
    return agreements, float(np.median(np.concatenate(margins))), target.dtype


def table_of(rows: list[dict]) -> Table:
    table = Table("decoding", "actions", "equal actions", "equal tokens", "passes", "largest margin at a difference")
    for row in rows:
        largest = row["margin_max_at_differences"]
        rates = (f"{100 * row[name]:.2f} %" for name in ("action_agreement", "token_agreement"))
        margin = "" if largest is None else f"{largest:.3f}"
        table.add_row(row["decoding"], str(row["actions"]), *rates, f"{row['passes']:.2f}", margin)
    return table


if __name__ == "__main__":
    sys.exit(main())
