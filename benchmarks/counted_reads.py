"""Counting of what a rank reads from a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch.distributed.checkpoint import filesystem


class _Counted:
    """A file whose bytes are counted as they are read."""

    def __init__(self, file: Any, read: list[int]) -> None:
        self._file, self._read = file, read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, *args: Any) -> bytes:
        data = self._file.read(*args)
        self._read.append(len(data))
        return data

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._read.append(count)
        return count


def count_reads() -> list[int]:
    """A list that gets the size of every read of torch's reader of checkpoints."""
    read: list[int] = []
    create = filesystem.FileSystem.create_stream

    @contextlib.contextmanager
    def counted(self: Any, path: Any, mode: str) -> Iterator[Any]:
        with create(self, path, mode) as file:
            yield _Counted(file, read) if mode == "rb" else file

    filesystem.FileSystem.create_stream = counted
    return read
