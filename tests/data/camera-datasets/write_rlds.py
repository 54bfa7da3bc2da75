"""Write a small RLDS data set with TensorFlow Datasets, and what it reads from it.

python write_rlds.py OUTPUT DEMONSTRATION DEMONSTRATION

The features are those of the LIBERO data sets that OpenVLA is trained on; the wrist's pictures are upside down ones of
the other camera's.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from pictures import SIZE, episodes

DEMONSTRATIONS: list[str] = []


class SmallLibero(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = Path(__file__).parent  # else it is taken for the file, not its folder

    def _info(self) -> tfds.core.DatasetInfo:
        picture = tfds.features.Image(shape=(SIZE[1], SIZE[0], 3), dtype=np.uint8, encoding_format="jpeg")
        observation = {
            "image": picture,
            "wrist_image": picture,
            "state": tfds.features.Tensor(shape=(8,), dtype=np.float32),
        }
        step = {
            "observation": tfds.features.FeaturesDict(observation),
            "action": tfds.features.Tensor(shape=(7,), dtype=np.float32),
            "is_first": tfds.features.Scalar(np.bool_),
            "is_last": tfds.features.Scalar(np.bool_),
            "language_instruction": tfds.features.Text(),
        }
        metadata = tfds.features.FeaturesDict({"file_path": tfds.features.Text()})
        features = {"steps": tfds.features.Dataset(step), "episode_metadata": metadata}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number, episode in enumerate(episodes(DEMONSTRATIONS)):
            steps = [
                {
                    "observation": {"image": image, "wrist_image": image[::-1], "state": np.zeros(8, np.float32)},
                    "action": np.zeros(7, np.float32),
                    "is_first": at == 0,
                    "is_last": at == len(episode) - 1,
                    "language_instruction": text,
                }
                for at, (text, image) in enumerate(episode)
            ]
            yield str(number), {"steps": steps, "episode_metadata": {"file_path": f"{number}.hdf5"}}


def main(output: Path, demonstrations: list[str]) -> None:
    DEMONSTRATIONS.extend(demonstrations)
    builder = SmallLibero(data_dir=output)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
    expected = []
    for episode in tfds.builder_from_directory(builder.data_dir).as_dataset(split="train"):
        for step in episode["steps"].as_numpy_iterator():
            sums = {name: zlib.crc32(step["observation"][name].tobytes()) for name in ("image", "wrist_image")}
            expected.append(sums | {"instruction": step["language_instruction"].decode()})
    (Path(builder.data_dir) / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
