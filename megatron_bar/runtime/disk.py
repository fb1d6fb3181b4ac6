"""Disks that are full, or can't be written: what to look at before, and how to say it after."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import staging_path
from megatron_bar.runtime.stopping import ContinueLater

_FAULTS = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "lets you write no more (quota)",
    errno.EFBIG: "takes no file as large as that",
    errno.EROFS: "is read-only",
}
# torch's writer of checkpoints only notices that less was written than it gave.
_CUT_SHORT = "unexpected pos"


def disk_of(path: Path) -> Path:
    """The mount point of the file system that `path` is on, or would be."""
    path = Path(path).resolve()
    while not path.is_mount():
        path = path.parent
    return path


def free_bytes(path: Path) -> float:
    """Bytes that may be written beside `path`; infinity where the file system doesn't tell."""
    usage = shutil.disk_usage(existing(path))
    return usage.free if usage.total else float("inf")


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    path = Path(path).resolve()
    return path if os.path.exists(path) else existing(path.parent)


def unwritable(folder: Path) -> str | None:
    """The reason why `folder` takes no file, in the system's words; None where it does."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def check_output_file(target: Path) -> None:
    """Raise BarError, before there is something to write, if `target` can't become a file."""
    if os.path.isdir(target):
        raise BarError(f"{target} can't be written: it is a folder; name a file")
    if not os.path.isdir(target.parent):
        raise BarError(f"{target} can't be written: there is no folder {target.parent}")
    _check_place(target, target.parent)


def check_output_folder(target: Path) -> None:
    """Raise BarError, before there is something to write, if `target` can't become a folder.

    Folders above it are made with it. Who writes it says what becomes of one that stands there.
    """
    if not os.path.isdir(target):
        _check_place(target, existing(target.absolute().parent))


def _check_place(target: Path, folder: Path) -> None:
    """Raise BarError unless something called as `target` is can be made in `folder`."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(staging_path(target.absolute()))  # an error where the name is too long
        why = unwritable(folder)
    except OSError as error:
        why = error.strerror or str(error)
    if why is not None:
        raise BarError(f"{target} can't be written: {why}")


def readable(size: float) -> str:
    """A number of bytes as a person says it."""
    for unit, step in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size:.0f} B"


def lacking(target: Path, needed: int) -> str | None:
    """A line that `target` can't be written for want of room, or None where it can."""
    if (free := free_bytes(target)) >= needed:
        return None
    return (
        f"{target} can't be written: it needs {readable(needed)}, and the disk at "
        f"{disk_of(target)} has {readable(free)} free"
    )


def disk_fault(error: BaseException) -> str | None:
    """The fault of the disk that `error`, or one that led to it, tells of; else None.

    Helper processes pass on no more than an error's text.
    """
    for one in _chain(error):
        for number, fault in _FAULTS.items():
            if getattr(one, "errno", None) == number or os.strerror(number) in str(one):
                return fault
        if _CUT_SHORT in str(one):
            return "took only a part of a file: it is full, or a limit is reached"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def explain_disk_faults(target: Path, more: Callable[[], str] = str) -> Iterator[None]:
    """Raise BarError in place of what a full disk, or one that can't be written, has raised.

    It names `target`, which is being written, and its disk, and ends with what `more` says. Where
    one in the block has explained it, and another error came of that, the first is repeated.
    """
    try:
        yield
    except BaseException as error:
        explained = isinstance(error, (BarError, ContinueLater))
        if explained or (fault := disk_fault(error)) is None:
            raise
        for one in _chain(error):
            if isinstance(one, BarError):
                raise BarError(str(one)) from error
            target = getattr(one, "filename", None) or target
        raise BarError(
            f"{target} can't be written: the disk at {disk_of(target)} {fault} "
            f"({readable(free_bytes(target))} free){more()}; make room and run it again"
        ) from error
