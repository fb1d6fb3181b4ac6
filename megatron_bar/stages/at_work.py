"""A sign that a stage is at work, which goes with its last rank, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

_FOLDER = ".at-work"


@contextlib.contextmanager
def at_work(run: Path, stage: str) -> Iterator[None]:
    """Hold the sign that a stage of `run` is at work; every rank may.

    It is a lock on a file, which the system lifts when a process is killed. On a file system that
    has no locks there is no sign.
    """
    path = _sign(run, stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:  # whose time of change is the stage's start
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def begun_at(run: Path, stage: str) -> float | None:
    """The start of the execution that is at work, in seconds since 1970; None if there is none."""
    with contextlib.suppress(FileNotFoundError), open(_sign(run, stage)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return _sign(run, stage).stat().st_mtime
    return None


def _sign(run: Path, stage: str) -> Path:
    return run / _FOLDER / stage.replace("/", "-")
