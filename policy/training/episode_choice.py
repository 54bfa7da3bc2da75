"""Which episodes come first and which are for validation: chosen by name alone, so that it stays when others join."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def order_by_name(name: str) -> int:
    """What to sort by for an order that is arbitrary but fixed."""
    return _number(name, "order")


def is_held_out(name: str, every: int) -> bool:
    """Whether an episode is one of those, one in `every`, that are kept for validation."""
    return _number(name, "split") % every == 0


def held_out_names(names: Iterable[str], every: int) -> frozenset[str]:
    """Those of which `is_held_out` is true, `every` being 2 or more.

    Where that is none or all of two or more episodes, one is held out nevertheless, or one is not.
    """
    order = sorted(set(names), key=lambda name: _number(name, "split"))
    chosen = [name for name in order if is_held_out(name, every)] or order[:1]
    return frozenset(order[:-1] if len(chosen) == len(order) else chosen)


def _number(name: str, purpose: str) -> int:
    """As if drawn at random, but always the same; those for different purposes have nothing to do with each other."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8, person=purpose.encode()).digest(), "big")
