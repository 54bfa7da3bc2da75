"""What a drafter's training leaves for the next run: its state and the target's actions, each with what they belong to.

Knows files and what must not differ. Knows nothing of networks.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WAY_OUT = "start anew with `--resume false`, or give another --output"


@dataclass(frozen=True, slots=True)
class DrafterProgress:
    """folder: the files'. made_with: what a training goes on with or not at all, by option.
    asked: the target whose actions are kept, and how it was asked.
    """

    folder: Path
    made_with: Mapping[str, str]
    asked: str

    def state(self) -> dict[str, Any] | None:
        """What `save_state` was given last, tensors still on disk; None where it was not.

        Raises ValueError for that of a training which was made with something else, and for a file that is none.
        """
        if not self._state_file.is_file():
            return None
        state = _read(self._state_file)
        made_with = state.get("made_with")
        if not isinstance(made_with, dict):
            raise ValueError(f"{self._state_file} does not say what it was made with; {WAY_OUT}")
        names = sorted(name for name in made_with.keys() | self.made_with.keys())
        changes = [
            f"{name} was {made_with.get(name)} and is {self.made_with.get(name)}"
            for name in names
            if made_with.get(name) != self.made_with.get(name)
        ]
        if changes:
            raise ValueError(f"{self.folder} holds another training: {'; '.join(changes)}; {WAY_OUT}")
        return state

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Tensors, numbers and texts, to go on from."""
        _write(self._state_file, dict(state) | {"made_with": dict(self.made_with)})

    def actions(self) -> dict[str, Tensor]:
        """What `save_actions` was given, empty where that was another target's or nothing."""
        kept = _read(self._actions_file) if self._actions_file.is_file() else {}
        return kept["episodes"] if kept.get("asked") == self.asked else {}

    def save_actions(self, episodes: Mapping[str, Tensor]) -> None:
        """The target's choices, by an episode's digest."""
        _write(self._actions_file, {"asked": self.asked, "episodes": dict(episodes)})

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def _state_file(self) -> Path:
        return self.folder / "state.pt"

    @property
    def _actions_file(self) -> Path:
        return self.folder / "actions.pt"


def _read(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({str(error).splitlines()[0]}); {WAY_OUT}") from error


def _write(path: Path, content: dict[str, Any]) -> None:
    """The file appears under its name only when it is complete."""
    unfinished = path.with_suffix(".part")
    torch.save(content, unfinished)
    unfinished.replace(path)
