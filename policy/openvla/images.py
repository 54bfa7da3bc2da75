"""From a camera frame to the network's pixels, with the arithmetic of the original OpenVLA pipelines.

Two paths exist. "processor" is that of the published image processor: resize and normalise. "libero" is that of the
published LIBERO evaluation, which imitates how its training data were stored: rotate by 180 degrees, JPEG, Lanczos to
224x224, centre crop, and then the processor. The second was made with TensorFlow; here it is numpy with the same
operations in the same order and precision, which gives the same bytes.

Knows no network, no prompt and no torch.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from policy.openvla.config import IMAGE_SIDE
from policy.openvla.resampling import bilinear_crop, lanczos_resize

ImagePath = Literal["libero", "processor"]
ResizeStrategy = Literal["resize-naive", "resize-crop", "letterbox"]

# Side of the centre crop over the side of the frame: the crop covers 0.9 of the area, as the crops of training did.
# The root is taken in float32, as the original does; rounding it later changes some pixels by a level.
LIBERO_CROP_SIDE = float(np.sqrt(np.float32(0.9)))

JPEG_QUALITY = 95
JPEG_CHROMA_HALVED = 2  # Pillow's number for 4:2:0


@dataclass(frozen=True, slots=True)
class PreprocessorSettings:
    """The published image processor's settings, with one entry of `means` and `stds` per vision tower, in their order.

    resize_strategy: "resize-naive" squashes to 224x224, "resize-crop" scales the shorter side to 224 and cuts the
        centre out, "letterbox" pads to a square with the mean colour first.
    means, stds: RGB in units of [0, 1].
    """

    resize_strategy: ResizeStrategy = "resize-naive"
    means: tuple[tuple[float, ...], ...] = ((0.485, 0.456, 0.406), (0.5, 0.5, 0.5))
    stds: tuple[tuple[float, ...], ...] = ((0.229, 0.224, 0.225), (0.5, 0.5, 0.5))

    def __post_init__(self) -> None:
        if self.resize_strategy not in get_args(ResizeStrategy):
            known = ", ".join(get_args(ResizeStrategy))
            raise ValueError(f"image_resize_strategy is {self.resize_strategy!r}; it must be one of {known}")
        if not self.means or len(self.means) != len(self.stds):
            raise ValueError(
                f"means and stds must have one entry per tower, got {len(self.means)} and {len(self.stds)}"
            )
        if any(len(colour) != 3 for colour in (*self.means, *self.stds)):
            raise ValueError(f"every mean and std must have 3 values (RGB), got means {self.means}, stds {self.stds}")
        if any(value <= 0 for std in self.stds for value in std):
            raise ValueError(f"stds must be positive, got {self.stds}")

    @classmethod
    def load(cls, directory: Path | str) -> PreprocessorSettings:
        """Read `preprocessor_config.json` in a checkpoint's directory, or `processor_config.json`, in which
        transformers 5 saves the same settings.

        Raises FileNotFoundError where there is neither and ValueError for settings no published OpenVLA checkpoint has.
        """
        path, processor = (Path(directory) / f"{name}_config.json" for name in ("preprocessor", "processor"))
        if not path.is_file() and not processor.is_file():
            raise FileNotFoundError(
                f"{path} is missing, and {processor.name} too; copy it from the checkpoint this one was trained from"
            )
        read = path if path.is_file() else processor
        try:
            config = json.loads(read.read_text(encoding="utf-8"))
            settings = cls.from_config(config if read == path else config["image_processor"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{read} holds no settings of OpenVLA's image processor: {error}") from error
        if len(settings.means) != 2:
            raise ValueError(f"{read} has settings for {len(settings.means)} vision towers; OpenVLA has 2")
        return settings

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PreprocessorSettings:
        """Read the image processor's settings as published; see `load`."""
        try:
            strategy, sizes = config["image_resize_strategy"], config["input_sizes"]
            means, stds = config["means"], config["stds"]
        except KeyError as error:
            raise ValueError(f"there is no {error} in it, but {sorted(config)}") from error
        if any(list(size) != [3, IMAGE_SIDE, IMAGE_SIDE] for size in sizes):
            raise ValueError(f"input_sizes are {sizes}; only [3, {IMAGE_SIDE}, {IMAGE_SIDE}] is supported")
        if any(interpolation != "bicubic" for interpolation in config.get("interpolations", ())):
            raise ValueError(f"interpolations are {config['interpolations']}; only 'bicubic' is supported")
        return cls(strategy, tuple(map(tuple, means)), tuple(map(tuple, stds)))


DEFAULT_SETTINGS = PreprocessorSettings()


def resolve_image_path(name: Literal["auto", "libero", "processor"], dataset: str) -> ImagePath:
    """The path itself; "auto" is decided by the name of the data set that the actions' statistics are of."""
    if name == "auto":
        return "libero" if dataset.startswith("libero") else "processor"
    if name not in get_args(ImagePath):
        raise ValueError(f"image path is {name!r}; it must be auto or one of {', '.join(get_args(ImagePath))}")
    return name


def pixel_values(image: np.ndarray, path: ImagePath, settings: PreprocessorSettings = DEFAULT_SETTINGS) -> np.ndarray:
    """The network's input float32 `[3 * towers, 224, 224]` for a camera frame uint8 `[H, W, 3]`, by the named path."""
    return processor_pixel_values(sized_frame(image, path, settings), settings)


def sized_frame(image: np.ndarray, path: ImagePath, settings: PreprocessorSettings = DEFAULT_SETTINGS) -> np.ndarray:
    """What `pixel_values` normalises: uint8 `[224, 224, 3]` of a camera frame uint8 `[H, W, 3]`, by the named path."""
    if path == "processor":
        return _resize(_checked(image), settings)
    if path == "libero":
        return center_crop(libero_frame(image))
    raise ValueError(f"image path is {path!r}; it must be one of {', '.join(get_args(ImagePath))}")


def processor_pixel_values(image: np.ndarray, settings: PreprocessorSettings = DEFAULT_SETTINGS) -> np.ndarray:
    """Resize uint8 `[H, W, 3]` and normalise it for each tower: float32 `[3 * towers, 224, 224]`.

    Resizing is Pillow's bicubic on uint8; a frame that has the right size already is left as it is. As in the original,
    an image is letterboxed once, with the *last* tower's mean colour, whatever the number of towers.
    """
    resized = _resize(_checked(image), settings)
    tables = normalisation_tables(settings)  # [3 * towers, 256]
    values = np.empty((len(tables), IMAGE_SIDE, IMAGE_SIDE), np.float32)
    for colour in range(3):
        levels = resized[..., colour].astype(np.intp)
        for channel in range(colour, len(tables), 3):
            # Every index is a byte and so in range; "clip" only spares numpy a buffered check.
            np.take(tables[channel], levels, out=values[channel], mode="clip")
    return values


def libero_frame(image: np.ndarray) -> np.ndarray:
    """What the LIBERO evaluation calls the full image: uint8 `[224, 224, 3]` from a simulator frame `[H, W, 3]`."""
    return decode_frame(encode_frame(image))


def encode_frame(image: np.ndarray) -> bytes:
    """Rotate uint8 `[H, W, 3]` by 180 degrees and compress it as the training data were: JPEG, quality 95, 4:2:0."""
    stream = io.BytesIO()
    rotated = Image.fromarray(_checked(image)).transpose(Image.Transpose.ROTATE_180)
    rotated.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=JPEG_CHROMA_HALVED)
    return stream.getvalue()


def decode_frame(jpeg: bytes) -> np.ndarray:
    """The second half of `libero_frame`: uint8 `[224, 224, 3]` from the stream that `encode_frame` made."""
    return lanczos_resize(decode_jpeg(jpeg), IMAGE_SIDE)


def compressed_frame(image: np.ndarray) -> np.ndarray:
    """What JPEG leaves of a frame uint8 `[H, W, 3]`, turned by 180 degrees: the part of `libero_frame` that only the
    host can do.
    """
    return decode_jpeg(encode_frame(image))


def center_crop(frame: np.ndarray) -> np.ndarray:
    """Cut the central `LIBERO_CROP_SIDE` out of uint8 `[224, 224, 3]` and scale it back to that size, bilinearly."""
    return bilinear_crop(frame, LIBERO_CROP_SIDE)


def decode_jpeg(jpeg: bytes) -> np.ndarray:
    """Uint8 `[H, W, 3]` RGB of a JPEG stream, with TensorFlow's pixels.

    TensorFlow decodes with libjpeg's fast integer DCT, which differs from the accurate one by about 1 level on average.
    """
    return simplejpeg.decode_jpeg(jpeg, fastdct=True, fastupsample=False)


def _checked(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image must be uint8 [H, W, 3] (RGB), got {image.dtype} {image.shape}")
    return image


def _resize(image: np.ndarray, settings: PreprocessorSettings) -> np.ndarray:
    """Uint8 `[H, W, 3]` to `[224, 224, 3]` by the settings' strategy."""
    if image.shape[:2] == (IMAGE_SIDE, IMAGE_SIDE):
        return image
    picture = Image.fromarray(image)
    if settings.resize_strategy == "resize-naive":
        return np.asarray(picture.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC))
    if settings.resize_strategy == "letterbox":
        width, height = picture.size
        longer = max(width, height)
        sideways, upwards = (longer - width) // 2, (longer - height) // 2
        fill = tuple(int(value * 255) for value in settings.means[-1])
        picture = ImageOps.expand(picture, (sideways, upwards, sideways, upwards), fill)
    return _shorter_side_and_cut(picture)


def _shorter_side_and_cut(picture: Image.Image) -> np.ndarray:
    """Scale the shorter side to 224 and cut the central square out, with torchvision's rounding."""
    width, height = picture.size
    shorter = min(width, height)
    if shorter != IMAGE_SIDE:
        width, height = IMAGE_SIDE * width // shorter, IMAGE_SIDE * height // shorter
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - IMAGE_SIDE) / 2), round((height - IMAGE_SIDE) / 2)
    return np.asarray(picture.crop((left, top, left + IMAGE_SIDE, top + IMAGE_SIDE)))


@lru_cache(maxsize=16)
def normalisation_tables(settings: PreprocessorSettings) -> np.ndarray:
    """Float32 `[3 * towers, 256]`: the normalised value of each byte, by channel."""
    means, stds = (np.array(colours, np.float32).reshape(-1, 1) for colours in (settings.means, settings.stds))
    return (np.arange(256, dtype=np.float32) / np.float32(255) - means) / stds
