"""Pixels made by torch are those made by numpy, to the last bit."""

import numpy as np
import pytest
import torch

from policy.openvla.device_jpeg import DeviceJPEG
from policy.openvla.device_pixels import DevicePixels, uploaded
from policy.openvla.images import DEFAULT_SETTINGS, compressed_frame, pixel_values

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def some_frames(size: tuple[int, int]) -> list[np.ndarray]:
    """The last two have the steepest edges there are, and so the largest coefficients."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (*size, 3), np.uint8)
    smooth = np.broadcast_to(np.linspace(0, 255, size[1]).astype(np.uint8)[:, None], (*size, 3)).copy()
    chequered = np.broadcast_to((np.indices(size).sum(axis=0) % 2 * 255)[:, :, None], (*size, 3)).astype(np.uint8)
    return [noise, smooth, np.full((*size, 3), 255, np.uint8), (noise > 127) * np.uint8(255), chequered]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(256, 256), (16, 48)])
def test_jpeg_loses_what_libjpeg_loses_to_the_last_bit(device: str, size: tuple[int, int]) -> None:
    frames = some_frames(size)
    turned = torch.from_numpy(np.stack([frame[::-1, ::-1] for frame in frames]).copy()).to(device)
    found = DeviceJPEG(torch.device(device))(turned)
    np.testing.assert_array_equal(found.cpu().numpy(), np.stack([compressed_frame(frame) for frame in frames]))


def test_frames_that_need_padding_are_refused() -> None:
    with pytest.raises(ValueError, match="frames are 100x96; sides must be multiples of 16"):
        DeviceJPEG(torch.device("cpu"))(torch.zeros(1, 100, 96, 3, dtype=torch.uint8))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(256, 256), (480, 640), (128, 96), (100, 90)])
def test_pixels_are_the_hosts_to_the_last_bit(device: str, size: tuple[int, int]) -> None:
    frames = some_frames(size)
    given = torch.from_numpy(np.stack([uploaded(frame) for frame in frames])).to(device)
    pixels = DevicePixels(DEFAULT_SETTINGS, torch.device(device))(given)
    expected = np.stack([pixel_values(frame, "libero") for frame in frames])
    assert pixels.dtype == torch.float32
    np.testing.assert_array_equal(pixels.cpu().numpy(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_compiled_pixels_are_the_hosts_to_the_last_bit() -> None:
    pixels = DevicePixels(DEFAULT_SETTINGS, torch.device("cuda")).compiled()
    frames = some_frames((256, 256))
    for frame in frames:
        found = pixels(torch.from_numpy(uploaded(frame)[None].copy()).cuda())
        np.testing.assert_array_equal(found[0].cpu().numpy(), pixel_values(frame, "libero"))
    pair = pixels(torch.from_numpy(np.stack([uploaded(frame) for frame in frames[:2]])).cuda())
    np.testing.assert_array_equal(pair[1].cpu().numpy(), pixel_values(frames[1], "libero"))
