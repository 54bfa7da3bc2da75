"""Training views are those of inference with chance switched off, and stay in range with it on."""

import numpy as np
import pytest
import torch

from policy.openvla.images import center_crop
from policy.training.augmentation import AugmentationConfig, inference_pixels, training_pixels


def frame(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = rng.integers(0, 256, (8, 8, 3)).astype(np.float32)
    return np.kron(smooth, np.ones((28, 28, 1), np.float32)).astype(np.uint8)


def test_without_chance_the_training_crop_is_the_inference_crop():
    picture = frame()
    pixels = inference_pixels(torch.from_numpy(picture)[None])[0]
    cropped = center_crop(picture).astype(np.float32) / 255
    assert np.abs((pixels[3:].permute(1, 2, 0).numpy() + 1) / 2 - cropped).max() < 1.01 / 255
    still = training_pixels(torch.from_numpy(picture)[None], AugmentationConfig(0, 0, 0, 0, 0))[0]
    assert torch.allclose(still, pixels, atol=1e-5)


def test_random_views_differ_and_stay_in_range():
    torch.manual_seed(0)
    frames = torch.from_numpy(frame())[None].repeat(4, 1, 1, 1)
    pixels = training_pixels(frames, AugmentationConfig())
    assert pixels.shape == (4, 6, 224, 224)
    assert not torch.equal(pixels[0], pixels[1])
    assert pixels[:, 3:].min() >= -1
    assert pixels[:, 3:].max() <= 1


def test_ranges_are_checked():
    with pytest.raises(ValueError, match="brightness"):
        AugmentationConfig(brightness=1.5)
