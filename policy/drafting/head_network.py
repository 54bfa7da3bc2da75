"""The network of a draft head: one Llama layer that continues the target's features.

Row t reads the target's hidden state at position t and the embedding of token t + 1, and gives what the target's hidden
state at position t + 1 will be; the target's own head then tells the next token from it (Li et al. 2024, "EAGLE:
Speculative Sampling Requires Rethinking Feature Uncertainty"). Shape and tensor names are those of Spec-VLA's published
head (Wang et al. 2025, arXiv 2507.22424): no norm before the attention and none behind the layer.

Knows two ways to draft: token after token (`unroll`), and all remaining ones in one pass (`at_once`), for which unknown
tokens have learned embeddings. Both are plain functions of tensors, so training runs what serving runs. Knows nothing
of files, bins or trees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from policy.decoding.tree import DRAFTED_DIMENSIONS
from policy.openvla.config import LanguageConfig
from policy.openvla.language_model import Layer, Store, rotary_tables

# One row for each action token that something is drafted behind: row r reads token r and tells of token r + 1.
ROWS: Final = DRAFTED_DIMENSIONS - 1
EAGLE: Final = "eagle"
PARALLEL: Final = "parallel"
QUERY_DEVIATION: Final = 0.02


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """kind: "eagle" drafts token after token, "parallel" all at once. layer: sizes of the target's language model, of
    which the head has one layer.
    """

    kind: str
    layer: LanguageConfig

    def __post_init__(self) -> None:
        if self.kind not in (EAGLE, PARALLEL):
            raise ValueError(f"kind of a draft head is {self.kind!r}; it must be {EAGLE!r} or {PARALLEL!r}")
        if self.layer.layers != 1:
            raise ValueError(f"a draft head has 1 layer, got num_hidden_layers {self.layer.layers}")

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> HeadConfig:
        """Read a head's `config.json`: sizes as in any Llama's. A published Spec-VLA head's names no kind."""
        return cls(content.get("head", EAGLE), LanguageConfig.from_json(content))

    def to_json(self) -> dict[str, Any]:
        return self.layer.to_json() | {"head": self.kind}


@dataclass(frozen=True, slots=True, eq=False)
class Decided:
    """The tokens that are decided, R rows of which the first `counts` (int64 `[B]`, at least 1) count.

    embeddings: `[B, R, width]` of the tokens. features: `[B, R, width]`, the target's hidden states that chose them.
    """

    embeddings: Tensor
    features: Tensor
    counts: Tensor

    @property
    def last(self) -> Tensor:
        """Int64 `[B]`, the last row that counts."""
        return self.counts - 1


class HeadNetwork(nn.Module):
    """`prompt` is what `read` gives; `lengths`, int64 `[B]`, are the prompts' without padding."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        width = config.layer.width
        self.fc = nn.Linear(2 * width, width)
        layer = Layer(config.layer)
        layer.input_layernorm = nn.Identity()  # type: ignore[assignment]
        self.layers = nn.ModuleList([layer])
        if config.kind == PARALLEL:
            self.queries = nn.Parameter(QUERY_DEVIATION * torch.randn(ROWS, width))

    def read(self, embeddings: Tensor, features: Tensor) -> Tensor:
        """The prompt's keys and values, `[2, B, H, S - 1, D]`.

        embeddings, features: `[B, S, width]`, the target's input and its hidden states, padded on the right. With one
        layer nothing but keys and values of a prompt is ever needed, so this is three matrix products.
        """
        fused = self.fc(torch.cat([embeddings[:, 1:], features[:, :-1]], dim=-1))
        positions = torch.arange(fused.shape[1], device=fused.device).expand(len(fused), -1)
        return torch.stack(self._only_layer.self_attn.keys_and_values(fused, self._rotary(positions, fused.dtype)))

    def unroll(
        self, prompt: Tensor, lengths: Tensor, decided: Decided, steps: int, embed_next: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Read the decided tokens in one pass, then go on token after token, each time from what was drafted before.

        embed_next: embeddings `[B, width]` of the tokens to go on with, given the newest hidden states `[B, width]`.
        Returns hidden states behind the decided tokens, `[B, R, width]` (those beyond `counts` mean nothing), and
        those the draft consists of, `[B, 1 + steps, width]`: the first stands behind the last decided token.
        """
        rows = torch.arange(decided.features.shape[1], device=prompt.device)
        visible = self._prompt_visible(prompt, lengths)
        causal = (rows <= rows[:, None]).expand(len(lengths), -1, -1)
        mask = torch.cat([visible[:, None].expand(-1, len(rows), -1), causal], dim=2)
        seen = _Seen(prompt)
        known = self._layer(decided.embeddings, decided.features, lengths[:, None] - 1 + rows, seen, mask)
        visible = torch.cat([visible, rows < decided.counts[:, None]], dim=1)
        drafted = [known[torch.arange(len(known), device=known.device), decided.last]]
        for step in range(1, steps + 1):
            visible = torch.cat([visible, visible.new_ones(len(visible), 1)], dim=1)
            position = (lengths - 1 + decided.last + step)[:, None]
            embedding = embed_next(drafted[-1])[:, None]
            hidden = self._layer(embedding, drafted[-1][:, None], position, seen, visible[:, None])
            drafted.append(hidden[:, 0])
        return known, torch.stack(drafted, dim=1)

    def at_once(self, prompt: Tensor, lengths: Tensor, decided: Decided) -> Tensor:
        """Hidden states `[B, R, width]`, each behind one token, of which only the decided ones are known.

        Rows of unknown tokens read a learned embedding and the newest feature there is, and see each other in both
        directions; those of decided tokens see what is before them.
        """
        rows = torch.arange(decided.features.shape[1], device=prompt.device)
        is_known = rows < decided.counts[:, None]  # [B, R]
        newest = decided.features[torch.arange(len(lengths), device=rows.device), decided.last][:, None]
        embeddings = torch.where(is_known[:, :, None], decided.embeddings, self.queries.to(newest.dtype))
        features = torch.where(is_known[:, :, None], decided.features, newest)
        visible = self._prompt_visible(prompt, lengths)[:, None].expand(-1, len(rows), -1)
        among = (rows <= rows[:, None]) | ~is_known[:, :, None]
        mask = torch.cat([visible, among], dim=2)
        return self._layer(embeddings, features, lengths[:, None] - 1 + rows, _Seen(prompt), mask)

    def _layer(self, embeddings: Tensor, features: Tensor, positions: Tensor, seen: Store, mask: Tensor) -> Tensor:
        """One pass of rows `[B, rows, width]`; mask: bool `[B, rows, keys]`."""
        fused = self.fc(torch.cat([embeddings, features], dim=-1))
        return self._only_layer(fused, self._rotary(positions, fused.dtype), seen, mask[:, None])

    @property
    def _only_layer(self) -> Layer:
        layer = self.layers[0]
        assert isinstance(layer, Layer)
        return layer

    def _rotary(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return rotary_tables(positions, self.config.layer.head_size, self.config.layer.rotary_base, dtype)

    def _prompt_visible(self, prompt: Tensor, lengths: Tensor) -> Tensor:
        """Bool `[B, S - 1]`: all but padding, and but the last position, which is the first decided token's row."""
        return torch.arange(prompt.shape[3], device=prompt.device) < (lengths - 1)[:, None]


class _Seen:
    """Keys and values so far, `[B, H, S, D]` each: grows without writing into what gradients still need."""

    def __init__(self, prompt: Tensor) -> None:
        self._keys, self._values = prompt.unbind(0)

    def __call__(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self._keys = torch.cat([self._keys, keys], dim=2)
        self._values = torch.cat([self._values, values], dim=2)
        return self._keys, self._values
