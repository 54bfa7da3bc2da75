"""What heads have in common that draft from the target's features: the prompt is read once for each action.

Knows when which function of the network runs, and that it may be replayed. Knows nothing of how a draft is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from policy.decoding.capture import Record, captured
from policy.drafting.action_rows import ActionRows
from policy.drafting.head_network import HeadNetwork


class ReadingHead(ABC):
    """Satisfies `policy.drafting.base.Head`. rows: the target's. record: replays passes where given."""

    name: str

    def __init__(self, network: HeadNetwork, rows: ActionRows, record: Record | None = None) -> None:
        self.network = network
        self.rows = rows
        self._read = captured(network.read, record)
        self._draft = captured(self.chances, record)

    def read(self, embeddings: Tensor, features: Tensor, lengths: Tensor) -> None:
        self._lengths = lengths
        self._prompt = self._read((embeddings, features))

    def draft(self, bins: Tensor, features: Tensor, counts: Tensor, fewest: int) -> Tensor:
        return self._draft((self._prompt, self._lengths, bins, features, counts), fewest)

    @abstractmethod
    def chances(
        self, prompt: Tensor, lengths: Tensor, bins: Tensor, features: Tensor, counts: Tensor, fewest: int
    ) -> Tensor:
        """What `draft` gives, as a function of tensors. prompt: what the network read."""
