"""The pictures of data sets: which camera's, and from their compressed form to pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from policy.openvla.images import decode_jpeg

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_COLOURS = ("RGB", "RGBA", "L", "P")


def is_picture(data: bytes) -> bool:
    """Whether the bytes start like a JPEG or PNG file."""
    return data.startswith((_JPEG, _PNG))


def decode_picture(data: bytes) -> np.ndarray:
    """Uint8 `[H, W, 3]` RGB of a JPEG or PNG file; JPEG with TensorFlow's pixels.

    Raises ValueError for anything else, damaged files, and pictures of more than 8 bits a colour, such as depth.
    """
    if data.startswith(_JPEG):
        return decode_jpeg(data)
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.mode not in _COLOURS:
                raise ValueError(f"a picture has mode {picture.mode}; it must be one of {', '.join(_COLOURS)}")
            return np.asarray(picture.convert("RGB"))
    except UnidentifiedImageError as error:
        raise ValueError(f"{len(data)} bytes that begin with {data[:8]!r} are no picture") from error
    except (OSError, SyntaxError) as error:  # Pillow's for a PNG that is cut short or damaged
        raise ValueError(f"a picture of {len(data)} bytes is damaged: {error}") from error


def choose_camera(camera: str | None, cameras: list[str], folder: Path) -> str:
    """The camera of this name, or the only one that the data set in `folder` has. Raises ValueError for any other."""
    if camera is None and len(cameras) == 1:
        return cameras[0]
    if camera not in cameras:
        known = ", ".join(cameras) or "none"
        raise ValueError(f"camera is {camera!r}; {folder} has {known}: name one of them")
    return camera
