"""Tensors that lie in files, read by memory map: no bytes are copied until somebody looks."""

from __future__ import annotations

import ctypes
import errno
import io
import mmap
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import xxhash

from megatron_bar.runtime.errors import BarError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PAGE = mmap.PAGESIZE
_BLOCK = 2**20  # numbers
_MADV_POPULATE_READ = 22  # Linux 5.14; Python's mmap doesn't name it
# Not mmap.madvise: that one keeps other threads waiting while the disk works.
_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

# By dtype: integers of its width, and the patterns of +Inf and -Inf. All that isn't finite lies at
# or above them: the positive patterns as signed integers, the negative ones as unsigned.
_INFINITY = {
    torch.float64: (np.int64, np.uint64, 0x7FF0_0000_0000_0000, 0xFFF0_0000_0000_0000),
    torch.float32: (np.int32, np.uint32, 0x7F80_0000, 0xFF80_0000),
    torch.float16: (np.int16, np.uint16, 0x7C00, 0xFC00),
    torch.bfloat16: (np.int16, np.uint16, 0x7F80, 0xFF80),
}


class MappedFiles:
    """Read-only memory maps of a folder's files, each made when it is first asked for.

    Mapped pages belong to the page cache, not to the process. A file that shrinks under a map, or
    whose disk fails, would end the process with SIGBUS when it looks. So the kernel is asked to
    bring a tensor in before it is handed out, and says what goes wrong. Kernels before 5.14 can't
    be asked, and pages that memory pressure evicts in between are read once more.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._maps: dict[str, mmap.mmap] = {}

    def _map(self, name: str) -> mmap.mmap:
        if name not in self._maps:
            path = self.folder / name
            try:
                with open(path, "rb") as file:
                    self._maps[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:  # ValueError: an empty file
                raise BarError(f"{path} can't be read: {error}") from None
        return self._maps[name]

    def _check(self, name: str, end: int) -> mmap.mmap:
        map_ = self._map(name)
        if end > len(map_):
            raise BarError(
                f"{self.folder / name} is truncated: it has {len(map_)} bytes and "
                f"should have at least {end}"
            )
        return map_

    def window(self, name: str, offset: int, length: int) -> io.BufferedReader:
        """Some of a file's bytes as a file. Raises BarError if the file ends before they do."""
        self._check(name, offset + length)
        return io.BufferedReader(_Window(self.folder / name, offset, length))

    def tensor(
        self, name: str, offset: int, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> torch.Tensor:
        """A view of the file as a tensor, in memory. Raises BarError where it can't be read."""
        size = torch.Size(shape).numel() * dtype.itemsize
        map_ = self._check(name, offset + size)
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")
            tensor = torch.frombuffer(
                map_, dtype=dtype, count=size // dtype.itemsize, offset=offset
            ).reshape(shape)
        prefetch(tensor, self.folder / name)
        return tensor


class _Window(io.RawIOBase):
    """Bytes of a file as a file of their own. What is wrong with the disk, it raises as OSError."""

    def __init__(self, path: Path, offset: int, length: int) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self._offset, self._length = offset, length
        self._place = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._length}[whence]
        self._place = base + offset
        return self._place

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        piece = memoryview(buffer)[: max(self._length - self._place, 0)]
        count = os.preadv(self._fd, [piece], self._offset + self._place)
        self._place += count
        return count

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


def prefetch(tensor: torch.Tensor, path: Path) -> None:
    """Have a tensor that is a view of the file `path` in memory, all that isn't read at once.

    Raises BarError where the file can't give its bytes.
    """
    start = tensor.data_ptr() // _PAGE * _PAGE
    length = tensor.data_ptr() + tensor.nbytes - start
    _madvise(start, length, mmap.MADV_WILLNEED)
    if _madvise(start, length, _MADV_POPULATE_READ) and ctypes.get_errno() != errno.EINVAL:
        raise BarError(
            f"{path} can't be read ({os.strerror(ctypes.get_errno())}): its disk fails, "
            "or it has been cut short meanwhile"
        )


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def digest(tensor: torch.Tensor) -> str:
    """xxh3 of a tensor's bytes, as manifests keep it beside dtype and shape."""
    return xxhash.xxh3_128_hexdigest(raw_bytes(tensor.contiguous()))


def is_finite(tensor: torch.Tensor) -> bool:
    """True unless a contiguous tensor holds NaN or Inf. Two passes of integer maxima, no copy."""
    if tensor.numel() == 0 or tensor.dtype not in _INFINITY:
        return True
    signed, unsigned, positive, negative = _INFINITY[tensor.dtype]
    data = np.frombuffer(raw_bytes(tensor), dtype=signed)
    return bool(data.max() < positive and data.view(unsigned).max() < negative)


def same_numbers(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same bits, or, where dtypes differ, the same bits in the wider of the two."""
    if a.dtype == b.dtype:
        return a.shape == b.shape and torch.equal(
            a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)
        )
    wide = torch.promote_types(a.dtype, b.dtype)
    blocks = zip(a.reshape(-1).split(_BLOCK), b.reshape(-1).split(_BLOCK))
    return a.shape == b.shape and all(torch.equal(x.to(wide), y.to(wide)) for x, y in blocks)
