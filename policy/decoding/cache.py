"""A key-value cache of fixed size, so that every decoding step has the same shapes and addresses.

Knows where keys and values lie and which slots a plain causal query may see. Knows nothing of tokens; trees bring their
own mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from policy.openvla.config import LanguageConfig


class StaticCache:
    """Preallocated keys and values, `[layers, B, H, length, head size]` each.

    Slots that were written and are then overtaken need no clearing: a query sees slots up to its own only, and a slot
    is always rewritten before a query reaches it. So rows of different lengths, padded on the right, share one cache
    exactly.
    """

    def __init__(
        self, config: LanguageConfig, batch: int, length: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        shape = (config.layers, batch, config.key_value_heads, length, config.head_size)
        # Zeros, not empty: masked slots still enter the attention product, where a stray NaN would survive the mask.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self._slots = torch.arange(length, device=device)
        self._rows = torch.arange(batch, device=device)[:, None]

    @property
    def length(self) -> int:
        return self.keys.shape[3]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values `[B, H, S, D]` at slots int64 `[B, S]`; return the layer's cache, `[B, H, length, D]`
        each.
        """
        self.keys[layer][self._rows, :, slots] = keys.transpose(1, 2)
        self.values[layer][self._rows, :, slots] = values.transpose(1, 2)
        return self.keys[layer], self.values[layer]

    def causal_mask(self, slots: Tensor) -> Tensor:
        """Bool `[B, 1, S, length]`: the query at slot s sees slots 0..s."""
        return self._slots <= slots[:, None, :, None]
