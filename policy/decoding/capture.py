"""Forward passes recorded as CUDA graphs and replayed, one graph for each combination of shapes.

A small pass costs a GPU far less than its several hundred launches cost the host, and where a renderer shares the
card every launch may also wait for its turn. A replay is one launch. Knows shapes and buffers; nothing of what is
computed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from policy.openvla.model import OpenVLA

# So many shapes are recorded; further ones run as they are.
_MOST_GRAPHS = 512
# Batches are filled up to one of these sizes, or a multiple of the last, so that there are few shapes to record.
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# Runs before recording: the first ones choose kernels and allocate workspaces, which a graph cannot.
_REHEARSALS = 2
# Whether a recorded function is running; what it calls then belongs to its own recording.
_inside: ContextVar[bool] = ContextVar("inside a recorded function", default=False)


@dataclass(frozen=True, slots=True)
class Recording:
    """A function at fixed addresses: `play` reads `inputs` and leaves its result, if it has one, in `output`."""

    inputs: tuple[Tensor, ...]
    output: Tensor | None
    play: Callable[[], None]


Record = Callable[[Callable[[], Tensor | None], tuple[Tensor, ...]], Recording]
"""Records a function of no arguments that reads the given inputs."""


class GraphRecorder:
    """Records CUDA graphs that share one memory pool, so replays must not overlap."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor | None], inputs: tuple[Tensor, ...]) -> Recording:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_REHEARSALS):
                function()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on preparing pictures meanwhile; what they do must not end the recording.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = function()
        return Recording(inputs, output, graph.replay)


class Captured:
    """A function of tensors (and of other arguments, told apart by identity) that is recorded at its first call with
    new shapes and replayed at later ones. Called by another recorded function it is a part of that one's recording.

    The function returns a tensor or None. It must write nowhere but to its result and to tensors that `others` own, and
    not wait for the device. It runs several times while it is recorded, so what it writes must not depend on what it
    wrote before.

    made: how many recordings all of them have made so far.
    """

    made: ClassVar[int] = 0

    def __init__(self, function: Callable[..., Any], record: Record) -> None:
        self._function = function
        self._record = record
        self._recordings: dict[tuple[Any, ...], Recording] = {}
        self._owners: list[Any] = []  # kept alive: their identity is part of the keys

    def __call__(self, tensors: tuple[Tensor, ...], *others: Any) -> Any:
        if _inside.get():
            return self._function(*tensors, *others)
        key = (*((tensor.shape, tensor.dtype) for tensor in tensors), *map(id, others))
        recording = self._recordings.get(key)
        if recording is None:
            if len(self._recordings) >= _MOST_GRAPHS:
                return self._function(*tensors, *others)
            inputs = tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors)
            recording = self._record(lambda: self._run(*inputs, *others), inputs)
            self._recordings[key] = recording
            Captured.made += 1
            self._owners.extend(others)
        for own, given in zip(recording.inputs, tensors, strict=True):
            own.copy_(given)
        recording.play()
        # The next replay, of this or of another shape, may write over it.
        return None if recording.output is None else recording.output.clone()

    def _run(self, *arguments: Any) -> Any:
        token = _inside.set(True)
        try:
            return self._function(*arguments)
        finally:
            _inside.reset(token)


def captured(function: Callable[..., Any], record: Record | None) -> Callable[..., Any]:
    """`Captured`, or without a recorder the function itself; called alike, with a tuple of tensors first."""
    if record is None:
        return lambda tensors, *others: function(*tensors, *others)
    return Captured(function, record)


def recorded_batch(rows: int) -> int:
    """The size that a batch of so many rows is filled up to where passes are recorded."""
    return next((size for size in _BATCHES if size >= rows), -(-rows // _BATCHES[-1]) * _BATCHES[-1])


def capture_passes(model: OpenVLA, record: Record | None = None) -> None:
    """From now on the vision part and the cached passes of the language model are replayed. For inference only.

    record: how, CUDA graphs unless given.
    """
    record = record or GraphRecorder()
    vision = Captured(model.image_features, record)
    language = model.language_model
    plain = language.forward

    def run(embeddings: Tensor, positions: Tensor, slots: Tensor, mask: Tensor, *rest: Any) -> Tensor:
        *wanted, cache = rest
        return plain(embeddings, positions, cache, slots, mask, *wanted)

    captured = Captured(run, record)

    def forward(
        embeddings: Tensor,
        positions: Tensor,
        cache: Any = None,
        slots: Tensor | None = None,
        mask: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        if cache is None:
            return plain(embeddings, positions, None, slots, mask, wanted)
        slots = positions if slots is None else slots
        mask = cache.causal_mask(slots) if mask is None else mask
        tensors = (embeddings, positions, slots, mask)
        return captured(tensors if wanted is None else (*tensors, wanted), cache)

    # As with `model.forward = torch.compile(model.forward)`: callers need not know.
    setattr(model, "image_features", lambda pixels: vision((pixels,)))  # noqa: B010
    setattr(language, "forward", forward)  # noqa: B010
