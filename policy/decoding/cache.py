"""A key-value cache of fixed size, so that every decoding step has the same shapes and addresses.

Knows where keys and values lie and which slots a plain causal query may see. Knows nothing of tokens; trees bring their
own mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from policy.openvla.config import LanguageConfig
from policy.openvla.model import OpenVLA

_SLOTS = 384  # of a pool's smallest allocation: usual prompts with their tree


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

    What it lends are parts of few allocations. None is ever given back, as recorded passes read there; so rows and
    slots of each are one of few numbers, each twice the one before, and a request gets the smallest that holds it: all
    together they take less than four times what the largest batch and the longest prompt need, and one long prompt
    from one client does not make room for a large batch of them.
    """

    def __init__(self, model: OpenVLA) -> None:
        self._model = model
        self._whole: dict[tuple[int, int], StaticCache] = {}
        self._parts: dict[tuple[int, int], StaticCache] = {}

    def get(self, batch: int, length: int) -> StaticCache:
        """A cache for `batch` rows of `length` slots; holds what its last user left."""
        part = self._parts.get((batch, length))
        if part is None:
            size = _doubled(1, batch), _doubled(_SLOTS, length)
            fitting = [key for key in self._whole if key[0] >= size[0] and key[1] >= size[1]]
            key = min(fitting, key=lambda key: key[0] * key[1], default=size)
            if key not in self._whole:
                model = self._model
                self._whole[key] = StaticCache(model.config.language, *key, model.device, model.dtype)
            part = self._parts[batch, length] = self._whole[key].part(batch, length)
        return part

    @property
    def allocated(self) -> int:
        """Slots of all rows of all allocations."""
        return sum(rows * slots for rows, slots in self._whole)


def _doubled(smallest: int, needed: int) -> int:
    """`smallest`, doubled as often as it takes to hold `needed`."""
    return smallest << max(0, (-(-needed // smallest) - 1).bit_length())
