#!/usr/bin/env python3
"""Render the frames of demonstrations that were recorded without: `scripts/render_demos.py demos demos-rendered`.

Physics and rendering apart, each can run where it is fast: physics on many CPU cores, rendering on a GPU. Also renders
episodes that have frames once more, e.g. with another GL renderer. What is in the output folder already is skipped.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

from jsonargparse import ArgumentParser

from policy.training.demonstrations import Demonstration, list_demonstrations


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


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demonstrations", type=Path, help="folder with the recorded episodes")
    parser.add_argument("output", type=Path, help="folder for the rendered ones")
    parser.add_argument("--workers", type=int, default=2, help="processes, one per core")
    parser.add_argument("--share", type=int, default=20, help="episodes of a task that one process takes at a time")
    chosen = parser.parse_args()
    wanted = [path for path in list_demonstrations(chosen.demonstrations) if not (chosen.output / path.name).exists()]
    shares = []
    for _, group in groupby(wanted, key=lambda path: path.name.rsplit("_seed", 1)[0]):
        paths = list(group)
        shares += [paths[i : i + chosen.share] for i in range(0, len(paths), chosen.share)]
    started, frames = time.monotonic(), 0
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("spawn")) as pool:
        tasks = [pool.submit(render_files, share, chosen.output) for share in shares]
        for done, task in enumerate(as_completed(tasks), 1):
            frames += task.result()
            seconds = time.monotonic() - started
            print(f"{done}/{len(shares)} shares, {frames} frames, {frames / seconds:.0f} frames/s", flush=True)


if __name__ == "__main__":
    main()
