"""The fused projector: patch features of both towers into the language model's space."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from policy.openvla.config import OpenVLAConfig


class Projector(nn.Module):
    """Three linear layers with exact GELU between: `[B, 256, vision width]` to `[B, 256, language width]`."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.vision_width, config.projector_hidden)
        self.fc2 = nn.Linear(config.projector_hidden, config.language.width)
        self.fc3 = nn.Linear(config.language.width, config.language.width)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc3(functional.gelu(self.fc2(functional.gelu(self.fc1(features)))))
