"""One execution of a stage at a time, and a sign that it is at work."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from megatron_bar.runtime.locks import locked

# A server of network files frees the locks of a machine that was lost after a minute and a half.
PATIENCE_SECONDS = 120.0


@contextlib.contextmanager
def at_work(run: Path, stage: str) -> Iterator[None]:
    """Be the one execution of a stage of `run`, in the process that speaks for it.

    Two would write into the same folder. It is a lock on a file, which the system lifts when the
    process is killed. Raises BarError if another one holds it for two minutes.
    """
    path = _lock(run, stage)
    with locked(path, f"{stage} of {run} is computed by others", PATIENCE_SECONDS):
        path.touch()  # its time of change is the start
        yield


def begun_at(run: Path, stage: str) -> float | None:
    """The start of the execution that is at work, in seconds since 1970; None if there is none.

    On a file system that has no locks there is no sign of it.
    """
    path = _lock(run, stage)
    with contextlib.suppress(FileNotFoundError), open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return path.stat().st_mtime
        except OSError:
            return None
    return None


def _lock(run: Path, stage: str) -> Path:
    return run / f".{stage.replace('/', '-')}.lock"
