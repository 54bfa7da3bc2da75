"""Which drafters are compared, alone and together, and what is told of all rows in a few numbers.

Knows configurations and rows of a race. Knows nothing of networks or frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from policy.decoding.config import DecodingConfig
from policy.drafting.registry import HEADS, SEEING_DRAFTERS
from policy.openvla.config import ACTION_DIMENSIONS

PLAIN = "autoregressive"
STRICT_PAPER, RELAXED_PAPER = "spec-vla-paper-strict", "spec-vla-paper"
# How far apart drafts and choices may be in the paper whose gain is compared with, in bins.
PAPER_RADIUS = 9


def drafter_configs(trained: Sequence[str]) -> list[DecodingConfig]:
    """Every drafter alone and in combination, exact and relaxed, after the plain decoder.

    trained: of "draft-vla", "eagle" and "parallel" those that there are weights for.
    """
    plain, exact, default = (DecodingConfig.load(name) for name in (PLAIN, "exact", "default"))
    heads, looks = [name for name in trained if name in HEADS], [name for name in trained if name not in HEADS]
    configs = [plain, exact]
    configs += [replace(exact, name=f"{name} alone", drafters=(name,)) for name in ("previous", "motion", "retrieval")]
    configs += [replace(exact, name=f"{name} alone", drafters=(name,)) for name in looks]
    for head in heads:
        alone = replace(exact, name=f"{head} alone", drafters=(), head=head, tail="head")
        near = replace(alone, name=f"{head} alone, r={PAPER_RADIUS}", acceptance="spec-vla")
        configs += [alone, replace(near, tolerance={"radius": PAPER_RADIUS})]
    for base in (exact, default):
        configs += [] if base is exact else [base]
        seeing = [replace(base, name=f"{base.name} + {name}", drafters=(*base.drafters, name)) for name in looks]
        configs += seeing
        for config in (base, *seeing):
            configs += [replace(config, name=f"{config.name} + {head}", head=head) for head in heads]
    if "eagle" in heads:
        configs += [DecodingConfig.load(name) for name in (STRICT_PAPER, RELAXED_PAPER)]
    return configs


def further_tokens(row: Mapping[str, Any]) -> float | None:
    """Tokens that each pass after the first gained on average; None where there was none."""
    further = row["passes"] - 1
    return (ACTION_DIMENSIONS - row["first_pass_tokens"]) / further if further > 0 else None


def fastest_exact(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The fastest of those that execute the target's own choice, of which plain decoding is one; None of no rows."""
    exact = [row for row in rows if row["acceptance"] == "exact" or row["decoding"] == PLAIN]
    return min(exact, key=lambda row: row["mean_ms"], default=None)


def drafter_headline(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | str | None]:
    """None for what was not measured. Ratios are over plain decoding in the same race, lengths those of the published
    method's head.
    """
    found = {row["decoding"]: row for row in rows}

    def length(name: str) -> float | None:
        return further_tokens(found[name]) if name in found else None

    def ratio(name: str) -> float | None:
        return found[PLAIN]["mean_ms"] / found[name]["mean_ms"] if {PLAIN, name} <= set(found) else None

    trained = [row["mean_ms"] for row in rows if row["acceptance"] == "exact" and is_trained(row)]
    fastest = fastest_exact(rows)
    return {
        "fastest_exact": None if fastest is None else fastest["decoding"],
        "plain_ms": found[PLAIN]["mean_ms"] if PLAIN in found else None,
        "untrained_exact_ms": found["exact"]["mean_ms"] if "exact" in found else None,
        "best_trained_exact_ms": min(trained, default=None),
        "head_accept_length_exact": length("eagle alone"),
        "head_accept_length_r9": length(f"eagle alone, r={PAPER_RADIUS}"),
        "spec_vla_rerun_strict_ratio": ratio(STRICT_PAPER),
        "spec_vla_rerun_relaxed_ratio": ratio(RELAXED_PAPER),
    }


def is_trained(row: Mapping[str, Any]) -> bool:
    """Whether a network drafts in this row."""
    return bool(row.get("head")) or any(name in SEEING_DRAFTERS for name in row.get("drafters", ()))
