"""Pixels made by torch are those made by numpy, to the last bit."""

import numpy as np
import pytest
import torch

from policy.openvla.device_pixels import DevicePixels
from policy.openvla.images import DEFAULT_SETTINGS, compressed_frame, pixel_values

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(256, 256), (224, 224), (480, 640), (128, 96)])
def test_pixels_are_the_hosts_to_the_last_bit(device: str, size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (*size, 3), np.uint8)
    smooth = np.broadcast_to(np.linspace(0, 255, size[1]).astype(np.uint8)[:, None], (*size, 3)).copy()
    frames = [noise, smooth, np.full((*size, 3), 255, np.uint8)]
    decoded = torch.from_numpy(np.stack([compressed_frame(frame) for frame in frames])).to(device)
    pixels = DevicePixels(DEFAULT_SETTINGS, torch.device(device))(decoded)
    expected = np.stack([pixel_values(frame, "libero") for frame in frames])
    assert pixels.dtype == torch.float32
    np.testing.assert_array_equal(pixels.cpu().numpy(), expected)
