"""Random views of a training frame, made on the training device. Knows nothing of files or models.

At inference OpenVLA's LIBERO path crops the central 90 % of the picture's area (`policy.openvla.images.center_crop`).
In training the crop of the same size sits at a random place, so the policy sees small camera shifts, and colours vary
more than the renderers (EGL on a GPU, Mesa on a CPU) differ from one another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

CROP_SIDE = 0.9**0.5
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)  # no slots: jsonargparse reads a nested default's __dict__
class AugmentationConfig:
    """Ranges of the random changes; all zero means the plain central crop.

    shift: how far the crop may leave the centre, as a share of the free border (1 = up to the picture's edge).
    brightness, contrast, saturation: factors are drawn from `[1 - x, 1 + x]`.
    channel_shift: each colour channel is shifted by up to ± this share of full scale.
    """

    shift: float = 1.0
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    channel_shift: float = 0.06

    def __post_init__(self) -> None:
        for name in ("shift", "brightness", "contrast", "saturation", "channel_shift"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"augmentation.{name} must lie in 0..1, got {value}")


def _factor(count: int, spread: float, device: torch.device) -> torch.Tensor:
    """`[B, 1, 1, 1]` factors from `[1 - spread, 1 + spread]`."""
    return 1 + spread * (2 * torch.rand(count, 1, 1, 1, device=device) - 1)


def crop(frames: torch.Tensor, shift: float) -> torch.Tensor:
    """Crop of side sqrt(0.9) resampled to full size; `shift` 0 samples where `center_crop` does.

    frames: float `[B, 3, H, W]`. Sample position along an axis: c + s·(i - c) + t, with c the centre, s = sqrt(0.9).
    """
    count, device = len(frames), frames.device
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = CROP_SIDE
    theta[:, :, 2] = (2 * torch.rand(count, 2, device=device) - 1) * (1 - CROP_SIDE) * shift
    grid = F.affine_grid(theta, list(frames.shape), align_corners=True)
    return F.grid_sample(frames, grid, align_corners=True, padding_mode="border")


def jitter_colors(pictures: torch.Tensor, config: AugmentationConfig) -> torch.Tensor:
    """Random saturation, contrast, brightness and channel shift; `[B, 3, H, W]` in 0..1, clipped to it."""
    count, device = len(pictures), pictures.device
    gray = pictures.mean(1, keepdim=True)
    pictures = gray + (pictures - gray) * _factor(count, config.saturation, device)
    mean = pictures.mean((1, 2, 3), keepdim=True)
    pictures = mean + (pictures - mean) * _factor(count, config.contrast, device)
    pictures = pictures * _factor(count, config.brightness, device)
    pictures = pictures + config.channel_shift * (2 * torch.rand(count, 3, 1, 1, device=device) - 1)
    return pictures.clamp(0, 1)


def normalize(pictures: torch.Tensor) -> torch.Tensor:
    """`[B, 3, 224, 224]` in 0..1 -> pixel values `[B, 6, 224, 224]`: ImageNet statistics for DINOv2, 0.5 for SigLIP."""
    mean = pictures.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = pictures.new_tensor(IMAGENET_STD).view(3, 1, 1)
    return torch.cat([(pictures - mean) / std, pictures * 2 - 1], 1)


def training_pixels(frames: torch.Tensor, config: AugmentationConfig) -> torch.Tensor:
    """uint8 `[B, 224, 224, 3]` frames of the LIBERO path -> augmented pixel values float32 `[B, 6, 224, 224]`."""
    pictures = frames.permute(0, 3, 1, 2).float() / 255
    return normalize(jitter_colors(crop(pictures, config.shift), config))


def inference_pixels(frames: torch.Tensor) -> torch.Tensor:
    """The same without any randomness: what `policy.openvla.images` makes, up to its rounding to 8 bits."""
    return normalize(crop(frames.permute(0, 3, 1, 2).float() / 255, shift=0.0))
