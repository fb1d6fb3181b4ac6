"""Writes a long run of bytes past the page cache: the disk is at work while we compute.

cp fills the page cache and waits for the disk afterwards, which costs the kernel a copy and a page
for each of ours. Bytes that go from an aligned buffer to the disk at once (O_DIRECT) cost neither,
and leave what others have in the page cache alone.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

BUFFER_BYTES = 4 * 2**20
_ALIGNMENT = mmap.PAGESIZE  # of places in the file and in memory; any disk is content with it
_DIRECT = getattr(os, "O_DIRECT", 0)


class DirectFile:
    """A file that is written in ascending order from somewhere on; others may write elsewhere.

    One buffer fills while another is on its way. What lies on a page that isn't all ours, at the
    beginning and the end, goes through the page cache; so does everything where the file system
    knows no other way. Leaving the block without an error waits until the disk has it all.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        self._is_direct, self._can_be = False, bool(_DIRECT)
        self._buffer, self._spare = (
            mmap.mmap(-1, BUFFER_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for _ in range(2)
        )
        self._start = self._end = 0  # of what the buffer holds, whose page is the buffer's first
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future | None = None

    def __enter__(self) -> DirectFile:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self._send()
                self._wait()
                os.fsync(self._fd)
        finally:
            self._writer.shutdown()
            os.close(self._fd)

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Add `data` at `offset`; between it and what was added before come zeros."""
        if self._end == 0:
            self._start = self._end = offset
        assert self._end <= offset < self._end + _ALIGNMENT, "written in ascending order"
        self._add(np.zeros(offset - self._end, np.uint8))
        self._add(np.frombuffer(data, np.uint8))

    def _add(self, data: np.ndarray) -> None:
        while len(data):
            place = self._end - _page(self._start)
            piece = data[: BUFFER_BYTES - place]
            np.copyto(np.frombuffer(self._buffer, np.uint8)[place : place + len(piece)], piece)
            self._end += len(piece)
            data = data[len(piece) :]
            if place + len(piece) == BUFFER_BYTES:
                self._send()

    def _send(self) -> None:
        """Have the buffer written, and go on with the other one."""
        self._wait()
        self._writing = self._writer.submit(self._store, self._buffer, self._start, self._end)
        self._buffer, self._spare = self._spare, self._buffer
        self._start = self._end

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _store(self, buffer: mmap.mmap, start: int, end: int) -> None:
        base = _page(start)
        first = min(_page(start + _ALIGNMENT - 1), end)
        last = max(_page(end), first)
        for begin, stop, whole_pages in (
            (start, first, False),
            (first, last, True),
            (last, end, False),
        ):
            with memoryview(buffer) as view, view[begin - base : stop - base] as piece:
                self._write_all(piece, begin, whole_pages)

    def _write_all(self, data: memoryview, offset: int, whole_pages: bool) -> None:
        while len(data):
            try:
                self._set_direct(whole_pages and self._can_be)
                written = os.pwrite(self._fd, data, offset)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._can_be:
                    raise
                self._can_be = False  # this file system can't, or not like this
                continue
            # A disk that fills up writes less than it is given; the rest is no whole page.
            data, offset = data[written:], offset + written
            whole_pages = whole_pages and offset % _ALIGNMENT == 0

    def _set_direct(self, direct: bool) -> None:
        if direct != self._is_direct:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, self._flags | (_DIRECT if direct else 0))
            self._is_direct = direct


def _page(offset: int) -> int:
    return offset // _ALIGNMENT * _ALIGNMENT
