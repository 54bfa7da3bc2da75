"""The decodings whose savings and costs are measured on episodes: every rule and drafter, and swept tolerances.

Knows configurations and how to write one down for a server. Knows nothing of episodes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from policy.decoding.config import DecodingConfig
from policy.drafting.registry import DRAFTERS

RULES = ("exact", "spec-vla", "default", "physical", "typical")
RADII = (0, 1, 2, 3, 5, 7, 9, 12, 15, 20)
# Millimetres and milliradians; the first keeps translation exact.
TOLERANCES = ((0.0, 8.0), (0.5, 1.0), (1.25, 2.5), (2.5, 5.0), (5.0, 10.0))


def decoding_groups() -> dict[str, list[DecodingConfig]]:
    """What there is to measure, by group; the plain decoder, which all are compared with, is in none of them. What
    trees of other sizes and other tails save is told by logged frames (`scripts/check_decoding.py`), since their tokens
    are the same.
    """
    exact, default, physical = (DecodingConfig.load(name) for name in ("exact", "default", "physical"))
    drafted: list[DecodingConfig] = []
    for base in (exact, default):
        drafted += [replace(base, name=f"{base.name}, {name}", drafters=(name, "dataset")) for name in DRAFTERS
                    if name != "dataset"]  # fmt: skip
    swept = {
        base.acceptance: [
            exact  # which a radius of zero is, to the last token
            if radius == 0
            else replace(base, name=f"{base.acceptance}, r={radius}", tolerance={"radius": radius})
            for radius in RADII
        ]
        for base in (DecodingConfig.load("spec-vla"), default)
    }
    longest = [
        replace(
            default,
            name=f"{default.acceptance}, longest path, r={radius}",
            tolerance={"radius": radius},
            path="longest",
            stall_actions=None,
        )
        for radius in RADII
        if radius > 0
    ]
    tolerances = [
        replace(
            physical,
            name=f"physical, {millimetres} mm {milliradians} mrad",
            tolerance=dict(physical.tolerance) | {"translation_mm": millimetres, "rotation_mrad": milliradians},
        )
        for millimetres, milliradians in TOLERANCES
    ]
    rules = [DecodingConfig.load(name) for name in RULES]
    known = {_nameless(rule): rule for rule in rules}
    groups = {"drafters": drafted, **swept, "longest": longest, "physical": tolerances}
    shared = {group: [known.get(_nameless(config), config) for config in own] for group, own in groups.items()}
    return {"rules": rules, **shared}


def _nameless(config: DecodingConfig) -> str:
    """What two decodings that differ in their names only have in common: they are measured once."""
    return repr(replace(config, name="any"))


def write_decoding(config: DecodingConfig, file: Path) -> Path:
    """Write a YAML file, in the part of YAML that is JSON, for `DecodingConfig.load` to read; returns it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(config), indent=2, default=str) + "\n")
    return file
