"""Action tokens and the statistics that turn them into actions.

An action value in [-1, 1] falls into one of 256 bins, and each bin has a token at the end of the vocabulary: the lowest
value the highest id. Statistics of the training data scale [-1, 1] to the robot's units. Both follow the original:
values are binned by edges and read back as bin centres, of which there are only 255.

All arithmetic is float64 numpy. Knows no network, no torch and no robot.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from policy.openvla.config import ACTION_BINS

LLAMA_VOCABULARY = 32000

BIN_EDGES = np.linspace(-1.0, 1.0, ACTION_BINS)
BIN_CENTERS = (BIN_EDGES[:-1] + BIN_EDGES[1:]) / 2.0
BIN_EDGES.flags.writeable = BIN_CENTERS.flags.writeable = False


@dataclass(frozen=True, slots=True)
class ActionTokenizer:
    """Between normalised action values and token ids (prismatic/vla/action_tokenizer.py of the OpenVLA repository).

    vocab_size: number of ids below the padding rows, `text_config.vocab_size - pad_to_multiple_of`; the last 256 of
        them are the action ids.
    """

    vocab_size: int = LLAMA_VOCABULARY

    def __post_init__(self) -> None:
        if self.vocab_size < ACTION_BINS:
            raise ValueError(f"vocab_size is {self.vocab_size}; it must hold {ACTION_BINS} action ids")

    @property
    def first_id(self) -> int:
        """The lowest of the 256 action ids; it stands for the value 1."""
        return self.vocab_size - ACTION_BINS

    @property
    def bins(self) -> np.ndarray:
        """The bins' edges, float64 `[256]` from -1 to 1."""
        return BIN_EDGES

    @property
    def bin_centers(self) -> np.ndarray:
        """The values that tokens decode to, float64 `[255]`, ascending."""
        return BIN_CENTERS

    def encode(self, values: ArrayLike) -> np.ndarray:
        """Token ids int64, shaped as `values`; what lies outside [-1, 1] is clipped. Raises ValueError for NaN."""
        values = np.asarray(values, np.float64)
        if np.isnan(values).any():
            raise ValueError(f"action values must be numbers, got {values}")
        return self.vocab_size - np.digitize(np.clip(values, -1.0, 1.0), BIN_EDGES)

    def decode(self, token_ids: ArrayLike) -> np.ndarray:
        """Values float64 in (-1, 1), shaped as `token_ids`; any other id has the value of the nearest action id."""
        bins = self.vocab_size - np.asarray(token_ids, np.int64) - 1
        return BIN_CENTERS[np.clip(bins, 0, len(BIN_CENTERS) - 1)]


_DISPENSABLE = ("min", "max", "mean", "std")


@dataclass(frozen=True, slots=True, eq=False)
class ActionStatistics:
    """What the actions of a data set were, by dimension and in the robot's units; every field is `[dimensions]`.

    q01, q99: the 1st and 99th percentile, scaled to -1 and 1. mask: which dimensions are scaled at all (as a rule all
    but the gripper). min, max, mean, std: as their names say; None where a file leaves them out, as acting needs none.
    """

    q01: np.ndarray
    q99: np.ndarray
    mask: np.ndarray
    min: np.ndarray | None = None
    max: np.ndarray | None = None
    mean: np.ndarray | None = None
    std: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            given = getattr(self, name)
            if given is None and name in _DISPENSABLE:
                continue
            # A copy, so that nobody else's writing changes a frozen object.
            value = np.array(given, bool if name == "mask" else np.float64)
            if value.ndim != 1 or value.shape != np.shape(self.q01):
                raise ValueError(
                    f"{name} must have one value per dimension like q01 {np.shape(self.q01)}, got {value.shape}"
                )
            if not np.isfinite(value).all():
                raise ValueError(f"{name} must be finite, got {value}")
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        if (self.q99 < self.q01).any():
            raise ValueError(f"q99 must not be below q01, got q01 {self.q01} and q99 {self.q99}")

    @classmethod
    def from_json(cls, statistics: Mapping[str, Any]) -> ActionStatistics:
        """Read the "action" entry of a data set. Without a mask all dimensions are scaled. Raises ValueError."""
        missing = [name for name in ("q01", "q99") if name not in statistics]
        if missing:
            raise ValueError(f"action statistics have no {', '.join(missing)}; they have {sorted(statistics)}")
        every = {"mask": np.ones(len(statistics["q01"]), bool)}
        known = {field.name: statistics[field.name] for field in fields(cls) if field.name in statistics}
        for name in _DISPENSABLE:
            if name in known and not np.isfinite(np.array(known[name], np.float64)).all():
                known[name] = None  # of a dimension that some data set does not have, and nothing is scaled by it
        return cls(**(every | known))

    def to_json(self) -> dict[str, list[Any]]:
        """The "action" entry of a data set, without what is not known; `from_json` reads it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.tolist() for name, value in values.items() if value is not None}

    def unnormalize(self, values: ArrayLike) -> np.ndarray:
        """From [-1, 1] to the robot's units, `[..., dimensions]` float64, as the original does at inference."""
        values = np.asarray(values, np.float64)
        return np.where(self.mask, 0.5 * (values + 1) * (self.q99 - self.q01) + self.q01, values)

    def normalize(self, values: ArrayLike) -> np.ndarray:
        """From the robot's units to [-1, 1], `[..., dimensions]` float64, as the original prepares its training data.

        A dimension that never changed in the data (min = max) becomes 0. The tiny addend to the span is the original's.
        Raises ValueError for statistics without min and max.
        """
        if self.min is None or self.max is None:
            raise ValueError("these action statistics have no min and max, by which constant dimensions are known")
        values = np.asarray(values, np.float64)
        scaled = np.clip(2 * (values - self.q01) / (self.q99 - self.q01 + 1e-8) - 1, -1, 1)
        return np.where(self.min == self.max, 0.0, np.where(self.mask, scaled, values))


class DatasetStatistics(Mapping[str, ActionStatistics]):
    """Action statistics by data set, each read when it is asked for, so that damage to another one's is no obstacle.

    Asking raises ValueError for an entry that is incomplete or damaged, naming file and data set.
    """

    def __init__(self, source: Path, datasets: Mapping[str, Any]) -> None:
        self._source, self._datasets = source, datasets

    def __getitem__(self, name: str) -> ActionStatistics:
        entry = self._datasets[name]
        if not isinstance(entry, Mapping) or not isinstance(entry.get("action"), Mapping):
            found = sorted(entry) if isinstance(entry, Mapping) else repr(entry)
            raise ValueError(f"{self._source}: data set {name!r} has no 'action' entry; it has {found}")
        try:
            return ActionStatistics.from_json(entry["action"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self._source}: data set {name!r}: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._datasets)

    def __len__(self) -> int:
        return len(self._datasets)


def load_statistics(directory: Path | str) -> DatasetStatistics:
    """Action statistics of a checkpoint's directory by data set.

    A `dataset_statistics.json` takes the place of `norm_stats` in `config.json`: fine-tuning writes only the former.
    Raises ValueError where neither exists or holds any.
    """
    own, config = Path(directory) / "dataset_statistics.json", Path(directory) / "config.json"
    if own.is_file():
        source, datasets = own, _read_json(own)
    elif config.is_file():
        source, datasets = config, _read_json(config).get("norm_stats") or {}
    else:
        raise ValueError(f"{directory} holds neither {own.name} nor {config.name}; is it a checkpoint's directory?")
    if not datasets or not isinstance(datasets, Mapping):
        raise ValueError(f"{source} has no action statistics; add a {own.name} of the data the model was trained on")
    return DatasetStatistics(source, datasets)


def resolve_unnorm_key(statistics: Mapping[str, ActionStatistics], unnorm_key: str | None) -> str:
    """The data set that `unnorm_key` means.

    None means the only one there is. A LIBERO suite's name also finds `<suite>_no_noops`, the name of the filtered data
    that fine-tuning was done on. Raises ValueError, listing all keys, where that leaves none or several.
    """
    choices = ", ".join(sorted(statistics))
    if unnorm_key is None:
        if len(statistics) != 1:
            raise ValueError(f"the model was trained on {len(statistics)} data sets; give unnorm_key, one of {choices}")
        return next(iter(statistics))
    for key in (unnorm_key, f"{unnorm_key}_no_noops"):
        if key in statistics:
            return key
    raise ValueError(f"unnorm_key {unnorm_key!r} is not a data set of this model; it must be one of {choices}")


def select_statistics(statistics: Mapping[str, ActionStatistics], unnorm_key: str | None) -> ActionStatistics:
    """The statistics of the data set that `unnorm_key` means; see `resolve_unnorm_key`."""
    return statistics[resolve_unnorm_key(statistics, unnorm_key)]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
