"""OpenVLA: two vision towers, a projector and a Llama, from pixels and token ids to logits.

Knows how the published network computes and how a fresh small one starts. Knows nothing of files (`checkpoint`), of
what tokens mean (`action_tokens`, `prompt`) or of how tokens are chosen (`policy.decoding`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from policy.openvla.config import OpenVLAConfig
from policy.openvla.language_model import LanguageModel
from policy.openvla.projector import Projector
from policy.openvla.vision import Tower, VisionBackbone

INITIAL_DEVIATION = 0.02


class OpenVLA(nn.Module):
    """The network of Kim et al. 2024, "OpenVLA: An Open-Source Vision-Language-Action Model". Tensor names are the
    published ones.
    """

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_backbone = VisionBackbone(config)
        self.projector = Projector(config)
        self.language_model = LanguageModel(config.language)

    @classmethod
    def from_config(
        cls, config: OpenVLAConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> OpenVLA:
        """A fresh network with random weights, ready to train; on device "meta" only names and shapes."""
        with torch.device(device):
            model = cls(config).to(dtype)
        model.apply(_initialise)
        return model

    @property
    def device(self) -> torch.device:
        return self.language_model.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.lm_head.weight.dtype

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Projected patches `[B, 256, width]` of pixel values `[B, 6, 224, 224]`: channels 0-2 for DINOv2, 3-5 for
        SigLIP.
        """
        # Pixels are rounded to the model's dtype before the patch embedding, as the original does.
        return self.projector(self.vision_backbone(pixel_values.to(self.dtype)))

    def embed(self, token_ids: Tensor, image_features: Tensor) -> Tensor:
        """The language model's input `[B, T + 256, width]`: patches `[B, 256, width]` right behind the first of ids
        `[B, T]` (BOS).
        """
        text = self.language_model.model.embed_tokens(token_ids)
        return torch.cat([text[:, :1], image_features, text[:, 1:]], dim=1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits over the whole vocabulary for hidden states `[..., width]` behind the final norm."""
        return self.language_model.lm_head(hidden).float()

    def forward(self, pixel_values: Tensor, token_ids: Tensor) -> Tensor:
        """Hidden states `[B, T + 256, width]` of pixel values `[B, 6, 224, 224]` and ids `[B, T]` in one causal pass,
        as for training.

        Position 256 + t predicts token t + 1 for t >= 1; rows shorter than T are padded on the right.
        """
        embeddings = self.embed(token_ids, self.image_features(pixel_values))
        positions = torch.arange(embeddings.shape[1], device=embeddings.device).expand(len(embeddings), -1)
        return self.language_model(embeddings, positions)


def _initialise(module: nn.Module) -> None:
    """Start values on top of PyTorch's own (uniform weights, 1 / sqrt(inputs)): small embeddings and positions, no
    biases.
    """
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
    elif isinstance(module, Tower):
        for name in ("cls_token", "reg_token", "pos_embed"):
            if (token := getattr(module, name, None)) is not None:
                nn.init.normal_(token, std=INITIAL_DEVIATION)
