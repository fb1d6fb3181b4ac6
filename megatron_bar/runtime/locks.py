"""One at a time in a folder, over processes, users and, where the file system can, machines."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from megatron_bar.runtime.console import say
from megatron_bar.runtime.disk import disk_fault
from megatron_bar.runtime.errors import BarError

_POLL_SECONDS = 0.2


@contextlib.contextmanager
def locked(path: Path, taken: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` in the block; the system lets it go when the process ends.

    Where the file system has no locks, as some that are mounted over a network, that is said, and
    the user has to see to it.

    Raises BarError if another one holds it for `patience` seconds: `taken`, and who that is; and
    where the file can't be made.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if disk_fault(error):
            raise  # explained where the disk is known
        raise BarError(f"{path} can't be written: {error.strerror}") from None
    try:
        hold(file, path, taken, patience)
        with contextlib.suppress(OSError):  # a full disk; it only helps a message
            os.ftruncate(file, 0)
            os.pwrite(file, _myself().encode(), 0)
        yield
    finally:
        os.close(file)


def hold(file: int, path: Path, taken: str, patience: float = 0.0) -> None:
    """Lock the open file at `path` until it is closed; see `locked`, whose errors are raised."""
    deadline, told = time.monotonic() + patience, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = os.pread(file, 1000, 0).decode(errors="replace")
            taken_by = f"{taken} ({holder})" if holder else taken
            if time.monotonic() >= deadline:
                raise BarError(taken_by) from None
            if not told:
                say(f"{taken_by}; this one waits for it")
                told = True
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            say(
                f"{path}: this file system has no locks ({error.strerror}); see to it that nobody "
                f"else writes into {path.parent}"
            )
            return


def _myself() -> str:
    return f"{getpass.getuser()} on {socket.gethostname()}, process {os.getpid()}"
