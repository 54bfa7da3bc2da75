"""A key-value cache of fixed size, so that every decoding step has the same shapes and addresses.

Knows where keys and values lie and which slots a plain causal query may see. Knows nothing of tokens; trees bring their
own mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from policy.openvla.config import LanguageConfig
from policy.openvla.model import OpenVLA

_SLOTS = 64  # a pool's allocation grows by so many


class StaticCache:
    """Preallocated keys and values, `[layers, B, H, length, head size]` each. slots: int64 `[length]`, their numbers.

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
        self.slots = torch.arange(length, device=device)
        self._rows = torch.arange(batch, device=device)[:, None]

    def part(self, batch: int, length: int) -> StaticCache:
        """The first rows and slots as a cache of their own, at the same addresses."""
        part = object.__new__(StaticCache)
        part.keys, part.values = self.keys[:, :batch, :, :length], self.values[:, :batch, :, :length]
        part.slots, part._rows = self.slots[:length], self._rows[:batch]
        return part

    @property
    def batch(self) -> int:
        return self.keys.shape[1]

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
        return self.slots <= slots[:, None, :, None]


class CachePool:
    """Caches to be used one at a time: the same object, at the same addresses, for the same batch and length.

    What it lends are parts of one allocation, which grows by doubling when a batch needs more.
    """

    def __init__(self, model: OpenVLA) -> None:
        self._model = model
        self._whole: StaticCache | None = None
        self._parts: dict[tuple[int, int], StaticCache] = {}

    def get(self, batch: int, length: int) -> StaticCache:
        """A cache for `batch` rows of `length` slots; holds what its last user left."""
        part = self._parts.get((batch, length))
        if part is None:
            whole = self._whole
            if whole is None or whole.batch < batch or whole.length < length:
                rows, slots = (0, 0) if whole is None else (whole.batch, whole.length)
                rows = max(rows, 1 << (batch - 1).bit_length())
                slots = max(slots, -(-length // _SLOTS) * _SLOTS)
                model = self._model
                whole = StaticCache(model.config.language, rows, slots, model.device, model.dtype)
                self._whole = whole
            part = self._parts[batch, length] = whole.part(batch, length)
        return part
