"""The time of this process's last progress, for those who show it and those who watch it."""

from __future__ import annotations

import time

_last = time.monotonic()


def beat() -> None:
    """This rank has got on. Called at every step of whatever shows progress."""
    global _last
    _last = time.monotonic()


def seconds_still() -> float:
    """Seconds since then."""
    return time.monotonic() - _last
