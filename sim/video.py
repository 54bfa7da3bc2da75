"""Films of episodes: the right way up, with the instruction and the result written underneath."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

_CAPTION_HEIGHT = 48  # with the frame's 256 a multiple of 16, which spares the encoder a resize
_CAPTION_COLUMNS = 42
_HOLD_LAST_FRAME = 20  # one second, so that the end can be seen


class VideoUnavailableError(RuntimeError):
    """No video encoder is installed."""


def require_encoder() -> None:
    """Raises VideoUnavailableError, with the fix, where videos cannot be written."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise VideoUnavailableError(f"no ffmpeg for videos ({error}); run: pip install 'imageio[ffmpeg]'") from error


def write_video(path: Path, frames: Sequence[np.ndarray], caption: str, frames_per_second: int = 20) -> None:
    """Writes an H.264 MP4 of camera frames, uint8 `[R, R, 3]`, upside down as the simulator gives them.

    Raises VideoUnavailableError without an encoder and ValueError without frames.
    """
    if not frames:
        raise ValueError(f"no frames for {path}")
    require_encoder()
    import imageio_ffmpeg

    path.parent.mkdir(parents=True, exist_ok=True)
    strip = _caption_strip(caption, frames[0].shape[1])
    pictures = [np.concatenate([frame[::-1, ::-1], strip]) for frame in frames]
    size = (strip.shape[1], len(pictures[0]))
    writer = imageio_ffmpeg.write_frames(str(path), size, fps=frames_per_second, codec="libx264", macro_block_size=16)
    writer.send(None)  # starts the encoder
    for picture in pictures + pictures[-1:] * _HOLD_LAST_FRAME:
        writer.send(picture)
    writer.close()


def _caption_strip(caption: str, width: int) -> np.ndarray:
    """The caption in white on black, uint8 `[48, width, 3]`."""
    strip = Image.new("RGB", (width, _CAPTION_HEIGHT))
    lines = "\n".join(textwrap.wrap(caption, max(10, _CAPTION_COLUMNS * width // 256))[:4])
    ImageDraw.Draw(strip).multiline_text((4, 2), lines, fill="white", spacing=1)
    return np.asarray(strip)
