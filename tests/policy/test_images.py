"""Frames become the pixels that the original pipelines make of them, byte for byte."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from policy.openvla.images import (
    LIBERO_CROP_SIDE,
    PreprocessorSettings,
    center_crop,
    decode_frame,
    encode_frame,
    libero_frame,
    pixel_values,
    processor_pixel_values,
)
from policy.openvla.resampling import bilinear_crop, lanczos_resize, lanczos_taps

GOLDEN = Path(__file__).parents[1] / "data" / "golden-inputs"
ORIGINAL_FRAMES = np.load(GOLDEN / "libero_frames.npz")
SETTINGS = {
    "image_resize_strategy": "resize-naive",
    "input_sizes": [[3, 224, 224]] * 2,
    "interpolations": ["bicubic"] * 2,
    "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
    "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
}
ONE_TOWER = {"means": [[0.5, 0.5, 0.5]], "stds": [[0.5, 0.5, 0.5]]}
every_image = pytest.mark.parametrize("number", [0, 1, 2])


def camera_frame(number: int) -> np.ndarray:
    return np.asarray(Image.open(GOLDEN / f"image_{number}.png").convert("RGB"))


def random_frame(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.golden
@every_image
def test_processor_equals_the_original(number: int) -> None:
    values = processor_pixel_values(camera_frame(number))

    assert values.dtype == np.float32
    samples = np.load(GOLDEN / "pixel_values.npz")[f"every_16th_{number}"]
    np.testing.assert_array_equal(values[:, ::16, ::16], samples)
    digest = json.loads((GOLDEN / "golden.json").read_text())["pixel_values_sha256"][number]
    assert hashlib.sha256(values.tobytes()).hexdigest() == digest


@pytest.mark.golden
@every_image
def test_libero_frame_equals_tensorflow(number: int) -> None:
    frame = libero_frame(camera_frame(number))
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame, ORIGINAL_FRAMES[f"full_image_{number}"])


@pytest.mark.golden
@pytest.mark.parametrize("number", [0, 1])
def test_tensorflows_own_jpeg_decodes_to_the_same_frame(number: int) -> None:
    jpeg = ORIGINAL_FRAMES[f"jpeg_bytes_{number}"].tobytes()
    np.testing.assert_array_equal(decode_frame(jpeg), ORIGINAL_FRAMES[f"full_image_{number}"])


@pytest.mark.golden
@every_image
def test_center_crop_equals_tensorflow(number: int) -> None:
    cropped = center_crop(ORIGINAL_FRAMES[f"full_image_{number}"])
    assert cropped.dtype == np.uint8
    np.testing.assert_array_equal(cropped, ORIGINAL_FRAMES[f"cropped_{number}"])


@pytest.mark.golden
def test_lanczos_weights_equal_tensorflow() -> None:
    sources, weights = lanczos_taps(256, 224)
    np.testing.assert_array_equal(sources[:, 0], ORIGINAL_FRAMES["lanczos_starts_256"])
    np.testing.assert_array_equal(weights, ORIGINAL_FRAMES["lanczos_weights_256"])


def test_libero_path_is_the_processor_on_the_cropped_frame() -> None:
    image = camera_frame(0)
    expected = processor_pixel_values(ORIGINAL_FRAMES["cropped_0"])
    np.testing.assert_array_equal(pixel_values(image, "libero"), expected)
    np.testing.assert_array_equal(pixel_values(image, "processor"), processor_pixel_values(image))
    with pytest.raises(ValueError, match="libero, processor"):
        pixel_values(image, "bridge")  # type: ignore[arg-type]


@pytest.mark.parametrize(("source", "target"), [(256, 224), (100, 224), (640, 224), (224, 224), (3, 224)])
def test_lanczos_weights_of_any_size_sum_to_one(source: int, target: int) -> None:
    sources, weights = lanczos_taps(source, target)
    assert sources.min() >= 0
    assert sources.max() < source
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("size", [(256, 256), (480, 640), (120, 90)])
def test_a_plain_frame_stays_plain(size: tuple[int, int]) -> None:
    plain = np.full((*size, 3), (10, 100, 255), np.uint8)
    np.testing.assert_array_equal(lanczos_resize(plain, 224), np.full((224, 224, 3), (10, 100, 255)))


def test_encoded_frame_is_a_rotated_jpeg_with_halved_chroma() -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:8, :16] = 255
    jpeg = encode_frame(image)
    assert jpeg.startswith(b"\xff\xd8")
    header = jpeg.index(b"\xff\xc0")
    assert jpeg[header + 11] == 0x22  # luma is sampled twice as densely as chroma, both ways
    decoded = decode_frame(jpeg)
    assert decoded[-30:, -40:].min() > 240
    assert decoded[:100].max() < 15


def test_crop_keeps_the_center_and_drops_the_border() -> None:
    frame = np.zeros((224, 224, 3), np.uint8)
    frame[5:-5, 5:-5] = 200
    cropped = center_crop(frame)
    margin = 224 * (1 - LIBERO_CROP_SIDE) / 2
    assert margin > 5
    assert cropped.min() == 200
    np.testing.assert_array_equal(bilinear_crop(frame, 1.0), frame)
    with pytest.raises(ValueError, match="square frame, got 224x200"):
        center_crop(frame[:, :200])


def test_processor_takes_224_pixels_as_they_are() -> None:
    frame = random_frame(224, 224)
    values = processor_pixel_values(frame)
    np.testing.assert_allclose(values[3:].transpose(1, 2, 0), frame / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(values[0], (frame[..., 0] / 255 - 0.485) / 0.229, atol=1e-6)


def test_resize_crop_keeps_the_shape_of_things() -> None:
    image = np.zeros((224, 448, 3), np.uint8)
    image[:, :112], image[:, 112:336], image[:, 336:] = 50, 150, 250
    values = processor_pixel_values(image, PreprocessorSettings("resize-crop"))
    np.testing.assert_allclose(values[3:], 150 / 127.5 - 1, atol=1e-6)

    image = random_frame(300, 448)
    scaled = Image.fromarray(image).resize((334, 224), Image.Resampling.BICUBIC).crop((55, 0, 279, 224))
    values = processor_pixel_values(image, PreprocessorSettings("resize-crop"))
    np.testing.assert_array_equal(values, processor_pixel_values(np.asarray(scaled)))


def test_letterbox_pads_once_with_the_last_towers_mean() -> None:
    image = np.full((112, 224, 3), 255, np.uint8)
    values = processor_pixel_values(image, PreprocessorSettings("letterbox"))
    bars = np.full((224, 224, 3), 127, np.uint8)  # the last mean is 0.5; int(0.5 * 255) = 127
    bars[56:168] = 255
    np.testing.assert_array_equal(values, processor_pixel_values(bars))

    single = PreprocessorSettings("letterbox", means=((0.485, 0.456, 0.406),), stds=((0.229, 0.224, 0.225),))
    values = processor_pixel_values(image, single)
    assert values.shape == (3, 224, 224)
    bars[:56] = bars[168:] = (123, 116, 103)
    np.testing.assert_array_equal(values, processor_pixel_values(bars)[:3])


@pytest.mark.golden
def test_settings_of_a_published_file() -> None:
    assert PreprocessorSettings.load(GOLDEN / "checkpoint") == PreprocessorSettings()
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config.json is missing"):
        PreprocessorSettings.load(GOLDEN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_resize_strategy": "stretch"}, "'stretch'; it must be one of resize-naive"),
        ({"input_sizes": [[3, 384, 384]] * 2}, r"384.*only \[3, 224, 224\]"),
        ({"interpolations": ["bilinear", "bicubic"]}, "only 'bicubic'"),
        ({"means": [[0.5, 0.5, 0.5]]}, "one entry per tower, got 1 and 2"),
        ({"means": [[0.5], [0.5]]}, "3 values"),
        ({"stds": [[0.0, 1.0, 1.0]] * 2}, "stds must be positive"),
    ],
)
def test_settings_that_no_model_has_are_refused(change: dict[str, object], message: str) -> None:
    assert PreprocessorSettings.from_config(SETTINGS) == PreprocessorSettings()
    with pytest.raises(ValueError, match=message):
        PreprocessorSettings.from_config(SETTINGS | change)


def test_settings_as_transformers_5_saves_them(tmp_path: Path) -> None:
    saved = {
        "processor_class": "PrismaticProcessor",
        "image_processor": SETTINGS | {"image_resize_strategy": "letterbox"},
    }
    (tmp_path / "processor_config.json").write_text(json.dumps(saved))
    assert PreprocessorSettings.load(tmp_path) == PreprocessorSettings("letterbox")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    assert PreprocessorSettings.load(tmp_path) == PreprocessorSettings()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "preprocessor_config.json",
            "{",
            "preprocessor_config.json holds no settings of OpenVLA's image processor: Exp",
        ),
        ("processor_config.json", "{}", "processor_config.json holds no settings .*'image_processor'"),
        ("processor_config.json", '{"image_processor": null}', "processor_config.json holds no settings"),
        ("preprocessor_config.json", json.dumps(SETTINGS | ONE_TOWER), "settings for 1 vision towers; OpenVLA has 2"),
    ],
)
def test_files_without_settings_are_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        PreprocessorSettings.load(tmp_path)


def test_settings_without_a_field_are_refused() -> None:
    with pytest.raises(ValueError, match="no 'means'"):
        PreprocessorSettings.from_config({name: value for name, value in SETTINGS.items() if name != "means"})


@pytest.mark.parametrize("path", ["libero", "processor"])
@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)],
)
def test_what_is_no_rgb_frame_is_refused(image: np.ndarray, path: str) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]"):
        pixel_values(image, path)  # type: ignore[arg-type]


def test_frames_of_several_threads_do_not_mix() -> None:
    frames = [random_frame(height, width) for height, width in ((256, 256), (240, 320), (224, 224), (256, 256))] * 6
    expected = [pixel_values(frame, "libero") for frame in frames]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda frame: pixel_values(frame, "libero"), frames))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found[0], pixel_values(frames[0], "libero"))  # kept apart from later frames' buffers
