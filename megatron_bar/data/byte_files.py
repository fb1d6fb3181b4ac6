"""The bytes of a file from any place, as they are or out of gzip, a block in memory at a time."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from megatron_bar.runtime.errors import BarError

_BYTES_AT_ONCE = 1 << 22
_COMPRESSED_AT_ONCE = 1 << 18
# Decompression can begin anew at points that lie this far apart, or farther in large files: each
# point keeps about 50 kB, what zlib remembers there.
_POINTS_APART = 1 << 25
_MOST_POINTS = 1000
_GZIP_FRAMES = 31  # zlib's way to say: with gzip's header and checksum


class Reader(Protocol):
    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`; fast where each call's lie behind the last one's."""
        ...


class Bytes(Protocol):
    """The content of a file."""

    def blocks(self) -> Iterator[bytes]:
        """All of it, from the beginning."""
        ...

    def open(self) -> contextlib.AbstractContextManager[Reader]: ...


@dataclass(frozen=True)
class PlainBytes:
    path: Path

    def blocks(self) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            while block := file.read(_BYTES_AT_ONCE):
                yield block

    @contextlib.contextmanager
    def open(self) -> Iterator[Reader]:
        with open(self.path, "rb") as file:
            yield _PlainReader(file)


@dataclass(frozen=True)
class _PlainReader:
    file: BinaryIO

    def read(self, start: int, end: int) -> bytes:
        self.file.seek(start)
        return self.file.read(end - start)


@dataclass
class _Inflating:
    """Decompression that has come to byte `place` of the content and `at` of the file."""

    path: Path
    file: BinaryIO
    place: int = 0
    at: int = 0
    state: zlib._Decompress = field(default_factory=lambda: zlib.decompressobj(_GZIP_FRAMES))
    between: bool = True  # members: the file may end here

    def copy(self, file: BinaryIO) -> _Inflating:
        return _Inflating(self.path, file, self.place, self.at, self.state.copy(), self.between)

    def block(self) -> bytes:
        """The next bytes of the content; none at its end."""
        while True:
            self.file.seek(self.at)
            data = self.file.read(_COMPRESSED_AT_ONCE)
            if self.between:
                if not data:
                    return b""
                padding = len(data) - len(data.lstrip(b"\0"))  # which gzip allows behind a member
                self.at += padding
                data = data[padding:]
                if not data:
                    continue
            try:
                block = self.state.decompress(data, _BYTES_AT_ONCE)
            except zlib.error as error:
                raise BarError(f"{self.path} is not a whole gzip file: {error}") from None
            if not (data or block or self.state.eof):
                raise BarError(f"{self.path} is not a whole gzip file: its end is missing")
            self.between = self.state.eof
            # At the end of a member both may hold what follows it.
            rest = self.state.unused_data if self.between else self.state.unconsumed_tail
            self.at += len(data) - len(rest)
            if self.between:
                self.state = zlib.decompressobj(_GZIP_FRAMES)
            self.place += len(block)
            if block:
                return block


@dataclass(frozen=True)
class GzipBytes:
    path: Path
    _points: list[_Inflating] = field(default_factory=list, compare=False, repr=False)

    def blocks(self) -> Iterator[bytes]:
        """All of the content. On the way, places are kept from which `open` can go on."""
        self._points.clear()
        apart = _POINTS_APART
        with open(self.path, "rb") as file:
            inflating = _Inflating(self.path, file)
            self._points.append(inflating.copy(file))
            while block := inflating.block():
                yield block
                if inflating.place - self._points[-1].place >= apart:
                    self._points.append(inflating.copy(file))
                    if len(self._points) > _MOST_POINTS:
                        del self._points[1::2]
                        apart *= 2

    @contextlib.contextmanager
    def open(self) -> Iterator[Reader]:
        with open(self.path, "rb") as file:
            yield _GzipReader(file, self._points or [_Inflating(self.path, file)])


class _GzipReader:
    def __init__(self, file: BinaryIO, points: list[_Inflating]) -> None:
        self._file = file
        self._points = points
        self._inflating = points[0].copy(file)
        self._block = b""

    def read(self, start: int, end: int) -> bytes:
        nearest = max((p for p in self._points if p.place <= start), key=lambda p: p.place)
        if not self._begin <= start or nearest.place > self._inflating.place:
            self._inflating, self._block = nearest.copy(self._file), b""
        while self._inflating.place <= start and self._next():
            pass
        pieces = []
        while start < end:
            pieces.append(self._block[start - self._begin : end - self._begin])
            start += len(pieces[-1])
            if start < end and not self._next():
                break
        return b"".join(pieces)

    @property
    def _begin(self) -> int:
        """Where in the content the block in memory begins."""
        return self._inflating.place - len(self._block)

    def _next(self) -> bool:
        self._block = self._inflating.block()
        return bool(self._block)


def bytes_of(path: Path) -> Bytes:
    return GzipBytes(path) if path.suffix.lower() == ".gz" else PlainBytes(path)
