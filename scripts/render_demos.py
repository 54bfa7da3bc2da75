#!/usr/bin/env python3
"""Render the frames of demonstrations that were recorded without: `scripts/render_demos.py demos demos-rendered`.

Physics and rendering apart, each can run where it is fast: physics on many CPU cores, rendering on a GPU. Also renders
episodes that have frames once more, e.g. with another GL renderer. What is in the output folder already is skipped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

from jsonargparse import ArgumentParser

from policy.training.demonstrations import Demonstration, list_demonstrations

# Episodes that one process takes at a time: enough to pay for building their world, few enough to share out evenly.
_LARGEST_SHARE = 20


def render_files(paths: list[Path], output: Path) -> int:
    """Render some episodes of one task into `output`; returns the number of frames. Runs in a worker process."""
    from sim.demonstrations import render_frames
    from sim.libero import LiberoEnv

    frames = 0
    env: LiberoEnv | None = None
    for path in paths:
        demonstration = Demonstration.load(path)
        if env is None:
            env = LiberoEnv(demonstration.meta.suite, demonstration.meta.task)
        render_frames(env, demonstration).save(output / path.name)
        frames += len(demonstration)
    if env is not None:
        env.close()
    return frames


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demonstrations", type=Path, help="folder with the recorded episodes")
    parser.add_argument("output", type=Path, help="folder for the rendered ones")
    parser.add_argument("--workers", type=int, default=2, help="processes, one per core")
    return parser


def main() -> None:
    parser = make_parser()
    chosen = parser.parse_args()
    recorded = list_demonstrations(chosen.demonstrations)
    if not recorded:
        parser.error(f"no demonstrations in {chosen.demonstrations}")
    wanted = [path for path in recorded if not (chosen.output / path.name).exists()]
    print(f"{len(wanted)} episodes to render, {len(recorded) - len(wanted)} are there already", flush=True)
    episodes, frames, started = 0, 0, time.monotonic()
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("spawn")) as pool:
        tasks = {pool.submit(render_files, share, chosen.output): len(share) for share in shares(wanted)}
        for task in as_completed(tasks):
            episodes, frames = episodes + tasks[task], frames + task.result()
            rate = frames / (time.monotonic() - started)
            print(f"{episodes} episodes, {frames} frames, {rate:.0f} frames/s", flush=True)


def shares(paths: list[Path]) -> Iterator[list[Path]]:
    """Files of one task each, since a process builds a world for every share; `paths` are sorted."""
    for _, group in groupby(paths, key=lambda path: path.name.rsplit("_seed", 1)[0]):
        waiting = list(group)
        while waiting:
            yield waiting[:_LARGEST_SHARE]
            del waiting[:_LARGEST_SHARE]


if __name__ == "__main__":
    main()
