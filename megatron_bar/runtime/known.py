"""Amounts that may not be known, None where they aren't."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

_Amount = TypeVar("_Amount", int, float)


def known_sum(amounts: Iterable[_Amount | None]) -> _Amount | None:
    """The sum; None unless all are known."""
    total: _Amount = 0
    for amount in amounts:
        if amount is None:
            return None
        total += amount
    return total
