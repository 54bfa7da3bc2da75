"""Help texts for options that are made from a configuration class: those of its docstring, which says `name: text`.

jsonargparse knows other styles of docstrings and finds none in ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser


def describe_options(parser: ArgumentParser, config: type, title: str = "options") -> None:
    """Give the options that `parser.add_class_arguments(config)` made the texts of its docstring, and of those of the
    configurations in it. title: of the class's own group, where the docstring begins with an option.
    """
    texts = dict(_texts(config))
    for action in parser._actions:
        if not action.help and (text := texts.get(action.dest)):
            action.help = text
    own = set(option_texts(config))
    for group in parser._action_groups:
        if group.title and re.split("[:,]", group.title)[0] in own:
            group.title = title


def option_texts(config: type) -> dict[str, str]:
    """What a docstring says of each field of a dataclass. Several may share a text: `low, high: the limits.`"""
    names = "|".join(field.name for field in fields(config))
    beginning = re.compile(rf"(?:^|(?<=[.;] ))((?:{names})(?:, (?:{names}))*): ")
    _, *parts = beginning.split(" ".join((config.__doc__ or "").split()))
    return {name: text.strip() for listed, text in _pairs(parts) for name in listed.split(", ")}


def _texts(config: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """By the options' names, which are dotted for configurations within the configuration."""
    for name, text in option_texts(config).items():
        yield prefix + name, text
    hints: dict[str, Any] = get_type_hints(config)
    for field in fields(config):
        if isinstance(inner := hints[field.name], type) and is_dataclass(inner):
            yield from _texts(inner, f"{prefix}{field.name}.")


def _pairs(parts: Iterable[str]) -> Iterator[tuple[str, str]]:
    iterator = iter(parts)
    return zip(iterator, iterator, strict=True)
