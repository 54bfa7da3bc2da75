"""Say how far tolerant decoding strays from plain decoding on logged frames: passes, acceptance, mm and mrad.

    python scripts/shadow_acceptance.py demos --decoding exact spec-vla corrected physical typical

Any YAML file with a decoding configuration takes the place of a name.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.config import DecodingConfig
from policy.decoding.physical import ActionUnits
from policy.decoding.replay_target import ReplayTarget, add_replay_options, replay_paths
from policy.decoding.shadow import Shadow
from policy.results import write_result

_TRANSLATIONS, _ROTATIONS = ("dx_mm", "dy_mm", "dz_mm"), ("droll_mrad", "dpitch_mrad", "dyaw_mrad")


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_replay_options(parser)
    parser.add_argument("--decoding", nargs="+", type=str, default=["exact", "default"], help="what to compare")
    parser.add_argument("--episodes", type=int | None, default=None, help="how many, evenly spread over the folder")
    parser.add_argument("--side-by-side", type=int, default=8, help="episodes in one batch")
    return parser


def main() -> None:
    chosen, console = make_parser().parse_args(), Console()
    try:
        configs = [DecodingConfig.load(name) for name in chosen.decoding]
        paths = _spread(replay_paths(chosen), chosen.episodes)
        if chosen.side_by_side < 1:
            raise ValueError(f"--side-by-side is {chosen.side_by_side}; it must be at least 1")
        shadow = replay_through(configs, paths, chosen, console)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"cannot replay: {error}") from None
    rows = [record.row() for record in shadow.records]
    title = f"{rows[0]['actions']} frames of {len(paths)} episodes, compared with plain decoding"
    console.print(table_of(rows, title))
    if chosen.output is not None:
        described = [asdict(config) | row for config, row in zip(configs, rows, strict=True)]
        write_result(chosen.output, described, {row["decoding"]: row["passes"] for row in rows})


@torch.inference_mode()
def replay_through(configs: list[DecodingConfig], paths: list[Path], chosen: Namespace, console: Console) -> Shadow:
    """Load what is needed and play the episodes, group by group."""
    target = ReplayTarget.load(chosen)
    decoders = [config.build(target.material()) for config in configs]
    shadow = Shadow(AutoregressiveDecoder(target.model), decoders, ActionUnits.from_statistics(target.statistics))
    for first in track(range(0, len(paths), chosen.side_by_side), "replaying", console=console):
        group = paths[first : first + chosen.side_by_side]
        shadow.play([target.episode(path) for path in group])
    return shadow


def _spread(paths: list[Path], count: int | None) -> list[Path]:
    """`count` of them, evenly spaced."""
    if count is None or count >= len(paths):
        return paths
    if count < 1:
        raise ValueError(f"--episodes is {count}; it must be at least 1")
    return [paths[index * len(paths) // count] for index in range(count)]


def table_of(rows: list[dict[str, Any]], title: str) -> Table:
    """The worst axis stands for translation and for rotation; the result file has each, with its bias and drift."""
    statistics = ("size", "p99", "max")
    units = [f"{unit} {statistic}" for unit in ("mm", "mrad") for statistic in statistics]
    name = Column("decoding", no_wrap=True, min_width=12)
    table = Table(name, "passes", "same action", *units, title=title, box=None, padding=(0, 1))
    for row in rows:
        cells = [f"{row['passes']:.2f}", f"{row['identical_share']:.0%}"]
        for columns in (_TRANSLATIONS, _ROTATIONS):
            cells += [f"{max(row[column][statistic] for column in columns):.1f}" for statistic in statistics]
        table.add_row(row["decoding"], *cells)
    return table


if __name__ == "__main__":
    main()
