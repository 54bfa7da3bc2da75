"""LeRobot and RLDS data sets: what is read is what the libraries that wrote them read, and damage is named.

Those of `tests/data/camera-datasets` were written by lerobot and TensorFlow Datasets; the README there says which.
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from policy.openvla.images import PreprocessorSettings, center_crop, sized_frame
from policy.openvla.resampling import lanczos_resize
from policy.training.camera_episode import CameraEpisode, split_by_instruction
from policy.training.contact_sheet import save_contact_sheet
from policy.training.datasets.lerobot import LeRobotFolder
from policy.training.datasets.pictures import decode_picture
from policy.training.datasets.rlds import RLDSFolder
from policy.training.datasets.video import read_frames
from policy.training.drafter_config import DrafterTrainingConfig
from policy.training.drafter_training import DrafterTraining
from policy.training.episode_reader import EpisodeReader, FrameSource

DATA = Path(__file__).resolve().parents[1] / "data" / "camera-datasets"
RLDS = DATA / "rlds" / "small_libero" / "1.0.0"
STILL, FRONT = "observation.images.still", "observation.images.front"
CHEESE, BOWL = "pick up the cream cheese and place it in the basket", "put the cream cheese in the bowl"
# The last episode changes its task half-way.
STRETCHES = [("0", CHEESE, 3), ("1", BOWL, 2), ("2", CHEESE, 2), ("2", BOWL, 2)]

lerobot = pytest.mark.parametrize("version", ["v2.1", "v3.0"])


def lerobot_folder(version: str) -> Path:
    for module in ("pyarrow", "av"):
        pytest.importorskip(module)
    return DATA / f"lerobot-{version}"


@pytest.fixture
def rlds_folder() -> Path:
    pytest.importorskip("google.protobuf")
    return RLDS


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy to damage."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copy"))


def read(episodes: Iterable[CameraEpisode]) -> list[tuple[str, str, list[np.ndarray]]]:
    """In the order they were recorded; parts of an episode keep theirs."""
    found = [(episode.name, episode.instruction, list(episode.images)) for episode in episodes]
    return sorted(found, key=lambda episode: episode[0])


def sums(images: Iterable[np.ndarray]) -> list[int]:
    return [zlib.crc32(np.ascontiguousarray(image).tobytes()) for image in images]


@lerobot
def test_lerobot_pictures_and_instructions(version: str) -> None:
    folder = lerobot_folder(version)
    episodes = read(LeRobotFolder(folder, STILL).episodes())
    assert [(name, text, len(images)) for name, text, images in episodes] == STRETCHES
    images = [image for _, _, part in episodes for image in part]
    assert {(image.shape, image.dtype) for image in images} == {((64, 80, 3), np.dtype(np.uint8))}
    assert sums(images) == json.loads((folder / "expected.json").read_text())["crc32"]


@lerobot
def test_lerobot_videos_show_each_step_at_its_place(version: str) -> None:
    folder = lerobot_folder(version)
    filmed = read(LeRobotFolder(folder, FRONT).episodes())
    assert [(name, text, len(images)) for name, text, images in filmed] == STRETCHES
    still = read(LeRobotFolder(folder, STILL).episodes())
    seen, true = (np.stack([image for *_, part in found for image in part]).astype(int) for found in (filmed, still))
    far = np.abs(seen[:, None] - true[None]).mean(axis=(2, 3, 4))
    assert far.argmin(axis=1).tolist() == list(range(9))
    assert far.diagonal().max() < 5  # levels that the video codec costs


def test_lerobot_episodes_come_in_a_fixed_order_that_is_not_the_recorded_one() -> None:
    data_set = LeRobotFolder(lerobot_folder("v3.0"), STILL)
    order = [episode.name for episode in data_set.episodes()]
    assert order == [episode.name for episode in data_set.episodes()]
    assert order != sorted(order)
    assert len(data_set) == 3


@lerobot
@pytest.mark.parametrize("camera", [None, "front"])
def test_a_camera_must_be_named_where_there_are_two(version: str, camera: str | None) -> None:
    with pytest.raises(ValueError, match=f"camera is {camera!r}; .* has {FRONT}, {STILL}: name one"):
        LeRobotFolder(lerobot_folder(version), camera)


def edit(path: Path, change: Callable[[str], str]) -> None:
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))


def replacing(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("info.json", replacing('"v2.1"', '"v1.6"'), "format v1.6; it must be one of v2.0, v2.1, v3.0"),
        ("info.json", replacing('"fps"', '"rate"'), "info.json has no fps; it has codebase_version"),
        ("info.json", replacing("{episode_index:06d}", "{file_index}"), "has data_path .* not one of v2.1"),
        ("info.json", lambda text: text[:100], "info.json is no JSON"),
        ("episodes.jsonl", replacing('"length": 3', '"length": 4'), "has 3 of 4 steps of episode 0"),
        ("episodes.jsonl", replacing('"length"', '"steps"'), "episodes.jsonl has a line without length"),
        ("episodes.jsonl", lambda text: "", "has no episodes"),
        ("tasks.jsonl", replacing('"task_index": 1', '"task_index": 7'), "has task 1 in episode .; .* are 0, 7"),
    ],
)
def test_lerobot_metadata_that_does_not_fit(
    copied: Callable[[Path], Path], file: str, change: Callable[[str], str], complaint: str
) -> None:
    folder = copied(lerobot_folder("v2.1"))
    edit(folder / "meta" / file, change)
    with pytest.raises(ValueError, match=complaint):
        read(LeRobotFolder(folder, FRONT).episodes())


@pytest.mark.parametrize("nothing", ['" "', "null"])
def test_lerobot_tasks_that_say_nothing(copied: Callable[[Path], Path], nothing: str) -> None:
    folder = copied(lerobot_folder("v2.1"))
    edit(folder / "meta" / "tasks.jsonl", replacing(f'"{BOWL}"', nothing))
    reader = EpisodeReader(FrameSource(str(folder), STILL), "libero", PreprocessorSettings(), 1)
    assert sorted((episode.name, len(episode.frames)) for episode in reader) == [("0", 3), ("2", 2)]
    assert reader.unlabelled == 2  # an episode, and the second part of another
    edit(folder / "meta" / "tasks.jsonl", replacing(f'"{CHEESE}"', nothing))
    reader = EpisodeReader(FrameSource(str(folder), STILL), "libero", PreprocessorSettings(), 1)
    with pytest.raises(ValueError, match="has no episode with frames and an instruction, and 3 without"):
        list(reader)


def test_rlds_steps_that_say_nothing(rlds_folder: Path, copied: Callable[[Path], Path]) -> None:
    folder = copied(rlds_folder)
    for shard in folder.glob("*.tfrecord-*"):
        shard.write_bytes(shard.read_bytes().replace(BOWL.encode(), b" " * len(BOWL)))
    reader = EpisodeReader(FrameSource(str(folder), "image"), "libero", PreprocessorSettings(), 1)
    assert {episode.instruction for episode in reader} == {CHEESE}
    assert reader.unlabelled == 2


@lerobot
def test_lerobot_episodes_of_other_splits_are_not_read(copied: Callable[[Path], Path], version: str) -> None:
    folder = copied(lerobot_folder(version))
    edit(folder / "meta" / "info.json", replacing('"train": "0:3"', '"train": "0:2", "test": "2:3"'))
    assert sorted({episode.name for episode in LeRobotFolder(folder, STILL).episodes()}) == ["0", "1"]
    edit(folder / "meta" / "info.json", replacing('"0:2"', "[0, 1]"))
    with pytest.raises(ValueError, match=r'info.json has split train \[0, 1\]; it must be like "0:50"'):
        LeRobotFolder(folder, STILL)
    edit(folder / "meta" / "info.json", replacing('"train"', '"others"'))
    assert len(LeRobotFolder(folder, STILL)) == 3


def test_a_feature_without_information(copied: Callable[[Path], Path]) -> None:
    folder = copied(lerobot_folder("v2.1"))
    info = json.loads((folder / "meta" / "info.json").read_text())
    for feature in info["features"].values():
        feature["info"] = None
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    assert len(read(LeRobotFolder(folder, FRONT).episodes())) == 4


def test_a_video_is_read_from_just_before_a_key_frame(tmp_path: Path) -> None:
    """Of x264's open groups of pictures, whose key frames are decoded before frames that are shown before them."""
    av = pytest.importorskip("av")
    if "libx264" not in av.codecs_available:
        pytest.skip("no x264 to write with")
    with av.open(str(tmp_path / "open.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        stream.options = {"x264-params": "open-gop=1:keyint=8:min-keyint=8:scenecut=0:bframes=3:b-adapt=0"}
        for level in range(30):
            picture = np.full((64, 64, 3), 8 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    for first in range(29):
        times = [first / 10, (first + 1) / 10]
        means = [frame.mean() for frame in read_frames(tmp_path / "open.mp4", times, 0.045)]
        assert means == pytest.approx([8 * first, 8 * first + 8], abs=3)


def test_a_picture_that_is_damaged(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    content = (tmp_path / "noise.png").read_bytes()
    for damaged in (content[: len(content) // 2], content[:200] + bytes(100) + content[300:]):
        with pytest.raises(ValueError, match=r"a picture of \d+ bytes is damaged"):
            decode_picture(damaged)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 114043\n"


@pytest.mark.parametrize("camera", [STILL, FRONT])
@lerobot
def test_lerobot_files_that_are_missing_or_damaged(copied: Callable[[Path], Path], version: str, camera: str) -> None:
    folder = copied(lerobot_folder(version))
    path = sorted(folder.glob("**/*.parquet" if camera == STILL else "**/*.mp4"))[0]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=path.name):
        read(LeRobotFolder(folder, camera).episodes())
    path.write_bytes(POINTER)
    with pytest.raises(ValueError, match=rf"{path.name}.*; it is a pointer of Git LFS, run `git lfs pull`"):
        read(LeRobotFolder(folder, camera).episodes())
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path.name} is missing; fetch"):
        read(LeRobotFolder(folder, camera).episodes())


def test_a_video_of_another_data_set(copied: Callable[[Path], Path]) -> None:
    folder = copied(lerobot_folder("v2.1"))
    first, second, third = sorted(folder.glob("videos/**/*.mp4"))
    shutil.copy(second, third)
    with pytest.raises(ValueError, match=r"episode_000002.mp4 ends before 0.200 s"):
        read(LeRobotFolder(folder, FRONT).episodes())
    shutil.copy(first, third)
    edit(folder / "meta" / "info.json", replacing('"fps": 10', '"fps": 100'))
    with pytest.raises(ValueError, match=r"ends before 0.300 s"):
        read(LeRobotFolder(folder, FRONT).episodes())


@pytest.mark.parametrize("camera", ["image", "wrist_image"])
def test_rlds_pictures_and_instructions_are_those_of_tensorflow_datasets(rlds_folder: Path, camera: str) -> None:
    expected = json.loads((rlds_folder / "expected.json").read_text())
    episodes = list(RLDSFolder(rlds_folder, camera).episodes())
    assert [text for episode in episodes for text in [episode.instruction] * len(list(episode.images))] == [
        step["instruction"] for step in expected
    ]
    assert sums(image for episode in episodes for image in episode.images) == [step[camera] for step in expected]
    assert len({episode.name for episode in episodes}) == 3
    assert len(episodes) == 4, "an episode changes its instruction"


@pytest.mark.parametrize("camera", [None, "front"])
def test_an_rlds_camera_must_be_named_where_there_are_two(rlds_folder: Path, camera: str | None) -> None:
    with pytest.raises(ValueError, match=f"camera is {camera!r}; .* has image, wrist_image: name one"):
        RLDSFolder(rlds_folder, camera)


def test_rlds_files_that_are_missing_or_damaged(rlds_folder: Path, copied: Callable[[Path], Path]) -> None:
    folder = copied(rlds_folder)
    first, second = sorted(folder.glob("*.tfrecord-*"))
    content = second.read_bytes()
    for damaged, complaint in (
        (content[:-1], "is cut short or no TFRecord file"),
        (content[:7], "is cut short or no TFRecord file"),
        (POINTER, "it is a pointer of Git LFS, run `git lfs pull`"),
        (content[:12] + bytes(len(content) - 12), "record 0: .*no tf.train.Example"),
        (content.replace(b"\xff\xd8\xff", b"\xff\xd8\x00"), "record 0: .*are no picture"),
        (content.replace(b"language_instruction", b"language_instructioN"), "record 0: .*more images than steps"),
    ):
        second.write_bytes(damaged)
        with pytest.raises(ValueError, match=complaint):
            read(RLDSFolder(folder, "image").episodes())
    second.unlink()
    with pytest.raises(ValueError, match="has 1 of 2 files of the split 'train'"):
        RLDSFolder(folder, "image")
    first.rename(folder / "small_libero-train.array_record-00000-of-00001")
    with pytest.raises(ValueError, match="has array_record files; only tfrecord"):
        RLDSFolder(folder, "image")
    (folder / "small_libero-train.array_record-00000-of-00001").unlink()
    with pytest.raises(ValueError, match="has no files of the split 'train'"):
        RLDSFolder(folder, "image")


def test_rlds_without_instructions(rlds_folder: Path, copied: Callable[[Path], Path]) -> None:
    folder = copied(rlds_folder)
    for shard in folder.glob("*.tfrecord-*"):
        shard.write_bytes(shard.read_bytes().replace(b"language_instruction", b"language_embedding__"))
    with pytest.raises(ValueError, match=r"no steps/language_instruction or .*, only steps/language_embedding__"):
        RLDSFolder(folder, "image")


def sources() -> list[Path]:
    return [RLDS, *(DATA / f"lerobot-{version}" for version in ("v2.1", "v3.0"))]


@pytest.mark.parametrize("folder", sources(), ids=lambda folder: folder.name)
def test_frames_are_turned_as_the_network_sees_them(folder: Path) -> None:
    if folder == RLDS:
        pytest.importorskip("google.protobuf")
        camera = "image"
        stored = next(iter(next(iter(RLDSFolder(folder, camera).episodes())).images))
    else:
        camera = STILL
        stored = next(iter(next(iter(LeRobotFolder(lerobot_folder(folder.name[8:]), camera).episodes())).images))
    settings = PreprocessorSettings()

    def first_frame(path, turned: bool | None) -> np.ndarray:
        return next(iter(EpisodeReader(FrameSource(str(folder), camera, turned), path, settings, 1))).frames[0]

    # LIBERO's are stored as the network sees them: turned, and through JPEG where there is one.
    upright = center_crop(lanczos_resize(stored, 224))
    np.testing.assert_array_equal(first_frame("libero", None), upright)
    np.testing.assert_array_equal(first_frame("libero", True), upright)
    np.testing.assert_array_equal(first_frame("libero", False), sized_frame(stored, "libero"))
    np.testing.assert_array_equal(first_frame("processor", None), sized_frame(stored, "processor"))
    np.testing.assert_array_equal(first_frame("processor", True), sized_frame(stored[::-1, ::-1], "processor"))
    # What a camera gives turns into the same picture, but for JPEG; the other way round it would be far off.
    served = sized_frame(stored[::-1, ::-1], "libero").astype(int)
    assert np.abs(served - upright).mean() < 4 < 20 < np.abs(served[::-1, ::-1] - upright).mean()


def test_a_drafter_learns_from_a_data_set(rlds_folder: Path, acting_checkpoint: Path, tmp_path: Path) -> None:
    config = DrafterTrainingConfig(
        target=str(acting_checkpoint), frames=str(rlds_folder), camera="image", kind="eagle", output=tmp_path / "head",
        max_steps=2, held_out_every=4, batch_size=2, log_seconds=1e9, device="cpu", dtype="float32",
    )  # fmt: skip
    training = DrafterTraining(config, lambda line: None)
    assert (len(training.training.library), len(training.validation.library)) == (7, 2)
    assert set(training.training.library.instructions) == {CHEESE, BOWL}
    training.run()
    assert training.step == 2
    with Image.open(tmp_path / "head-training" / "frames.png") as sheet:
        assert sheet.size == (6 * 224, 2 * 224)


def test_a_contact_sheet_goes_from_first_to_last_row_by_row(tmp_path: Path) -> None:
    frames = np.arange(23, dtype=np.uint8).repeat(4 * 4 * 3).reshape(23, 4, 4, 3)
    save_contact_sheet(frames, tmp_path / "frames.png")
    with Image.open(tmp_path / "frames.png") as sheet:
        levels = np.asarray(sheet)[::4, ::4, 0]
    assert levels.tolist() == [[0, 2, 4, 6, 8, 10], [12, 14, 16, 18, 20, 22]]


def test_options_of_data_sets_are_refused_elsewhere(tmp_path: Path) -> None:
    for source in (FrameSource(str(tmp_path), camera="image"), FrameSource("module:function", turned=True)):
        with pytest.raises(ValueError, match=r"are for LeRobot and RLDS data sets, and .* is neither; leave them out"):
            EpisodeReader(source, "libero", PreprocessorSettings(), 1)


def test_the_folder_above_a_version_is_told_apart() -> None:
    with pytest.raises(ValueError, match=r"no LeRobot or RLDS data set; give .*/small_libero/1.0.0"):
        EpisodeReader(FrameSource(str(RLDS.parent)), "libero", PreprocessorSettings(), 1)


@pytest.mark.parametrize(("module", "open_it"), [
    ("pyarrow.parquet", lambda: LeRobotFolder(DATA / "lerobot-v3.0", STILL)),
    ("google.protobuf.message", lambda: RLDSFolder(RLDS, "image")),
])  # fmt: skip
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, module: str, open_it: Callable) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"data set needs .*; run: pip install 'specact\[datasets\]'"):
        open_it()


def test_stretches_of_one_instruction() -> None:
    images = [np.full((2, 2, 3), level, np.uint8) for level in range(4)]
    parts = list(split_by_instruction("7", ["a", "a", "b", "a"], iter(images)))
    assert [(part.name, part.instruction, len(list(part.images))) for part in parts] == [
        ("7", "a", 2), ("7", "b", 1), ("7", "a", 1)
    ]  # fmt: skip
    for texts, complaint in (
        (["a"] * 5, "4 images for 5 steps"),
        (["a"] * 3, "more images than steps"),
    ):
        with pytest.raises(ValueError, match=complaint):
            list(split_by_instruction("7", texts, iter(images)))


def test_pictures_that_are_none() -> None:
    with pytest.raises(ValueError, match="5 bytes that begin with b'hello' are no picture"):
        decode_picture(b"hello")


def test_depth_is_no_picture(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 3000, np.uint16)).save(tmp_path / "depth.png")
    with pytest.raises(ValueError, match="has mode I;16; it must be one of RGB"):
        decode_picture((tmp_path / "depth.png").read_bytes())
