"""Digests of files by what is in them, each taken once.

Reading 50 GB takes a minute, so a digest is remembered by the file's path, size and times: in this
process, and for the next one in a folder, an entry a file, so that processes side by side don't get
in each other's way. What is remembered only saves time: it may be removed at any moment.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import xxhash

from megatron_bar.runtime.console import progress
from megatron_bar.runtime.files import file_digest, json_digest, write_text

_BLOCK = 1 << 24
_LARGE = 1 << 30  # bytes from which on the user sees that a file is read
# A file that was written just now may be written again within the same tick of the disk's clock.
_SETTLED_SECONDS = 2.0

_remembered: dict[str, str] = {}
_folder: Path | None = None


def remember_in(folder: Path) -> None:
    """Keep digests in `folder` from now on, and look there first."""
    global _folder
    _folder = Path(folder)


def content_digest(path: Path) -> str:
    """xxh3 of a file's bytes, as `file_digest` takes it. Raises OSError if it can't be read."""
    status = path.stat()
    key = json_digest([str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    if key in _remembered:
        return _remembered[key]
    if _folder is not None:
        with contextlib.suppress(OSError):
            return _remembered.setdefault(key, (_folder / key).read_text().strip())
    digest = file_digest(path) if status.st_size < _LARGE else _large_digest(path, status.st_size)
    if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS:
        _remembered[key] = digest
        if _folder is not None:
            with contextlib.suppress(OSError):  # a run that may only be read
                _folder.mkdir(parents=True, exist_ok=True)
                write_text(_folder / key, digest + "\n")
    return digest


def _large_digest(path: Path, size: int) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file, progress(f"read {path.name}, MiB", size >> 20) as advance:
        while block := file.read(_BLOCK):
            digest.update(block)
            advance(len(block) >> 20)
    return digest.hexdigest()
