"""Packages that only readers of data sets need: the extra "datasets", imported when a data set is opened."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingPackageError(ValueError):
    """A package of the extra is not installed; the message says how to get it."""


def import_extra(module: str, purpose: str) -> ModuleType:
    """The module, or MissingPackageError. purpose: what it is needed for, for the message."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MissingPackageError(f"{purpose} needs {missing}; run: pip install 'specact[datasets]'") from error
