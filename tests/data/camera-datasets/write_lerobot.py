"""Write a small LeRobot data set with the installed lerobot, and what lerobot itself reads from it.

python write_lerobot.py OUTPUT DEMONSTRATION DEMONSTRATION

lerobot 0.4 writes format v3.0, lerobot 0.3 writes v2.1. Both cameras show the same, one in pictures, one in a video.
"""

from __future__ import annotations

import inspect
import json
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from pictures import SIZE, episodes

FRONT, STILL = "observation.images.front", "observation.images.still"


def main(output: Path, demonstrations: list[str]) -> None:
    picture = {"shape": (SIZE[1], SIZE[0], 3), "names": ["height", "width", "channel"]}
    action = {"dtype": "float32", "shape": (7,), "names": None}
    features = {FRONT: {"dtype": "video", **picture}, STILL: {"dtype": "image", **picture}, "action": action}
    data = LeRobotDataset.create("small/libero", fps=10, features=features, root=output, robot_type="panda")
    task_apart = "task" in inspect.signature(data.add_frame).parameters
    if task_apart:  # v2.1: a file for each episode, two of them in a chunk
        data.meta.info["chunks_size"] = 2
    else:  # v3.0: the first two episodes share files, and every chunk has one file
        data.meta.update_chunk_settings(chunks_size=1, data_files_size_in_mb=0.025, video_files_size_in_mb=0.0027)
    for episode in episodes(demonstrations):
        for text, image in episode:
            frame = {FRONT: image, STILL: image, "action": np.zeros(7, np.float32)}
            data.add_frame(frame, task=text) if task_apart else data.add_frame({**frame, "task": text})
        data.save_episode()
    if not task_apart:
        data.finalize()
    shutil.rmtree(output / "images", ignore_errors=True)
    rows = LeRobotDataset("small/libero", root=output).hf_dataset
    pixels = [np.rint(255 * row[STILL].numpy()).astype(np.uint8).transpose(1, 2, 0) for row in rows]
    sums = [zlib.crc32(np.ascontiguousarray(image).tobytes()) for image in pixels]
    (output / "expected.json").write_text(json.dumps({"crc32": sums}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
