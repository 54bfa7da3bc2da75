"""Say how far tolerant decoding strays from plain decoding on logged frames: passes, acceptance, mm and mrad."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from policy.decoding.autoregressive import AutoregressiveDecoder
from policy.decoding.config import DecodingConfig
from policy.decoding.physical import ActionUnits
from policy.decoding.replay import LoggedEpisode
from policy.decoding.shadow import Shadow
from policy.drafting.registry import DrafterMaterial
from policy.hardware import choose_device, choose_dtype
from policy.openvla.action_tokens import load_statistics, select_statistics
from policy.openvla.checkpoint import load_checkpoint, locate_checkpoint
from policy.openvla.images import PreprocessorSettings
from policy.openvla.prompt import Prompter
from policy.results import write_result
from policy.training.demonstrations import list_demonstrations

_TRANSLATIONS, _ROTATIONS = ("dx_mm", "dy_mm", "dz_mm"), ("droll_mrad", "dpitch_mrad", "dyaw_mrad")


@torch.inference_mode()
def main(
    demonstrations: Path,
    checkpoint: str = "policy/pretrained/libero",
    unnorm_key: str | None = None,
    decoding: tuple[str, ...] = ("exact", "spec-vla", "corrected", "physical", "typical"),
    episodes: int | None = None,
    steps: int | None = None,
    side_by_side: int = 8,
    device: str = "auto",
    dtype: str = "auto",
    output: Path | None = None,
) -> None:
    """Replays demonstrations with frames through plain decoding and, frame by frame, through others.

    Args:
        demonstrations: folder of .npz files, as scripts/collect_demos.py writes them.
        checkpoint: directory or hub id.
        unnorm_key: dataset whose statistics scale the actions; may be left out where the checkpoint has one only.
        decoding: names in configs/decoding, or YAML files.
        episodes: how many episodes to replay, evenly spread over the folder; all if left out.
        steps: at most so many frames of each, from its start.
        side_by_side: episodes in one batch.
        device: auto, cpu, cuda or cuda:N.
        dtype: auto, float32 or bfloat16.
        output: file for the result as JSON.
    """
    console = Console()
    try:
        paths = _spread(list_demonstrations(demonstrations), episodes)
        if not paths:
            raise ValueError(f"there are no demonstrations in {demonstrations}; run scripts/collect_demos.py")
        configs = [DecodingConfig.load(name) for name in decoding]
        directory = locate_checkpoint(checkpoint)
        statistics = select_statistics(load_statistics(directory), unnorm_key)
        settings = PreprocessorSettings.load(directory)
        place = choose_device(device)
        model = load_checkpoint(directory, place, choose_dtype(dtype, place))
        prompter = Prompter(directory, maximum_tokens=model.config.maximum_tokens)
        material = DrafterMaterial(model, statistics, directory)
        decoders = [config.build(material) for config in configs]
        shadow = Shadow(AutoregressiveDecoder(model), decoders, ActionUnits.from_statistics(statistics))
        for first in track(range(0, len(paths), side_by_side), "replaying", console=console):
            group = paths[first : first + side_by_side]
            shadow.play([LoggedEpisode.load(path, model, prompter, settings, steps) for path in group])
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"cannot replay: {error}") from None
    rows = [record.row() for record in shadow.records]
    console.print(_table(rows, f"{rows[0]['actions']} frames of {len(paths)} episodes, compared with plain decoding"))
    if output is not None:
        described = [asdict(config) | row for config, row in zip(configs, rows, strict=True)]
        write_result(output, described, {row["decoding"]: row["passes"] for row in rows})


def _spread(paths: list[Path], count: int | None) -> list[Path]:
    """`count` of them, evenly spaced."""
    if count is None or count >= len(paths):
        return paths
    if count < 1:
        raise ValueError(f"--episodes is {count}; it must be at least 1")
    return [paths[index * len(paths) // count] for index in range(count)]


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    """The worst axis stands for translation and for rotation; the result file has each."""
    statistics = ("p99", "max", "mean", "drift")
    units = [f"{unit} {statistic}" for unit in ("mm", "mrad") for statistic in statistics]
    table = Table("decoding", "passes", "same action", *units, title=title, box=box.SIMPLE, pad_edge=False)
    for row in rows:
        cells = [f"{row['passes']:.2f}", f"{row['identical_share']:.1%}"]
        for columns in (_TRANSLATIONS, _ROTATIONS):
            for statistic in statistics:
                worst = max((row[column][statistic] for column in columns), key=abs)
                cells.append(f"{worst:.3f}" if statistic == "mean" else f"{worst:.1f}")
        table.add_row(row["decoding"], *cells)
    return table


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
