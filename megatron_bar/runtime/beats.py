"""This process's progress, for those who show it and those who watch it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

_last = time.monotonic()
_works: list[tuple[str, int]] = []  # under way, the innermost last, each with what of it is done


def beat(units: int = 0) -> None:
    """This rank has got on, by so many units of its work. Called at every step of it."""
    global _last
    _last = time.monotonic()
    if _works:
        name, done = _works[-1]
        _works[-1] = name, done + units


def seconds_still() -> float:
    """Seconds since then."""
    return time.monotonic() - _last


@contextlib.contextmanager
def work(name: str) -> Iterator[None]:
    """Count the units of `beat` in the block as those of this work."""
    _works.append((name, 0))
    try:
        yield
    finally:
        _works.pop()


def done() -> tuple[str, int]:
    """The work that is under way, and the units of it that are done."""
    return _works[-1] if _works else ("", 0)
