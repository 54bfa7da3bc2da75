"""What a configuration's docstring says of its fields is what `--help` says of the options."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import pytest
from jsonargparse import ArgumentParser

from policy.training.augmentation import AugmentationConfig
from policy.training.config import NetworkSize, TrainingConfig
from policy.training.drafter_config import DrafterTrainingConfig
from policy.training.objective import ObjectiveConfig
from policy.training.option_help import describe_options, option_texts


@dataclass(frozen=True)
class Inner:
    """Beginning, and: what is no option.

    depth: how deep, 5 % at most.
    """

    depth: float = 1.0


@dataclass(frozen=True)
class Outer:
    """low, high: the limits, see note: both count. name: what it is called,
    over two lines.
    """

    name: str
    low: int = 0
    high: int = 1
    untold: int = 2
    inner: Inner = field(default_factory=Inner)


def test_texts_by_option() -> None:
    limits = "the limits, see note: both count."
    assert option_texts(Outer) == {"low": limits, "high": limits, "name": "what it is called, over two lines."}
    assert option_texts(Inner) == {"depth": "how deep, 5 % at most."}


def test_help_has_them() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(Outer)
    describe_options(parser, Outer, "what there is")
    shown = " ".join(parser.format_help().split())
    assert "--inner.depth DEPTH how deep, 5 % at most. (type: float, default: 1.0)" in shown
    assert "--name NAME what it is called, over two lines. (required, type: str)" in shown
    assert "what there is:" in shown
    assert "Beginning, and: what is no option" in shown


@pytest.mark.parametrize(
    "config", [TrainingConfig, DrafterTrainingConfig, NetworkSize, AugmentationConfig, ObjectiveConfig]
)
def test_every_option_of_training_is_explained(config: type) -> None:
    assert {option.name for option in fields(config)} - option_texts(config).keys() == set()
