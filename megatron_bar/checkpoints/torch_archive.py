"""One tensor as torch.save writes it: a zip archive that keeps the tensor's bytes as they are.

torch can write an archive without the bytes (`torch.serialization.skip_data`) but reads one without
them only through FakeTensorMode, whose first use costs seconds. The archive's parts are documented
("Serialization semantics" in torch's notes): `data.pkl` rebuilds the tensor from `data/KEY`.
"""

from __future__ import annotations

import collections
import functools
import io
import os
import pickle
import struct
import zipfile
from typing import IO, TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

ALIGNMENT = 64  # of a tensor's bytes within its archive, and so of archives within a file
_LOCAL_HEADER_BYTES = 30
_NAME_LENGTHS_PLACE = 26  # in a local header
_NAME_LENGTHS = struct.Struct("<HH")  # of the name and the extra field


class _HoleyBuffer(io.BytesIO):
    """What torch.save writes around a tensor's bytes, for which it only moves on."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = bytearray(), bytearray()
        self.hole = 0

    def write(self, data: ReadableBuffer, /) -> int:
        written = bytes(data)
        (self.after if self.hole else self.before).extend(written)
        return len(written)

    def seek(self, count: int, whence: int = os.SEEK_SET, /) -> int:
        assert whence == os.SEEK_CUR and not self.hole
        self.hole = count
        return len(self.before) + count


@functools.lru_cache(maxsize=1024)
def frames(shape: torch.Size, dtype: torch.dtype) -> tuple[bytes, bytes]:
    """The bytes of an archive before and after those of a tensor.

    The checksum of the bytes is left 0. torch.load doesn't read it, other tools may warn.
    """
    buffer = _HoleyBuffer()
    with torch.serialization.skip_data():
        torch.save(torch.empty(shape, dtype=dtype), buffer)  # never touched, so it takes no memory
    assert buffer.hole == shape.numel() * dtype.itemsize
    return bytes(buffer.before), bytes(buffer.after)


class _Skeleton(pickle.Unpickler):
    """Rebuilds a plain tensor as `(dtype, key of its storage, numel of that, size, stride)`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: (*storage, offset, size, stride)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name.endswith("Storage"):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a stored tensor")

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, str, int]:
        _, storage_type, key, _, numel = pid
        return storage_type.dtype, key, numel


def bytes_start(archive: IO[bytes], dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """The offset in `archive` at which the bytes of its tensor begin.

    Raises some exception unless it is a whole archive of a contiguous tensor of `dtype` and `shape`
    and of nothing else.
    """
    with zipfile.ZipFile(archive) as zipped:
        root = zipped.namelist()[0].partition("/")[0]
        with zipped.open(f"{root}/data.pkl") as file:
            stored_dtype, key, numel, offset, size, stride = _Skeleton(file).load()
        entry = zipped.getinfo(f"{root}/data/{key}")
    expected = (dtype, torch.Size(shape).numel(), 0, tuple(shape))
    if (stored_dtype, numel, offset, tuple(size)) != expected or not _contiguous(size, stride):
        raise ValueError("the archive holds another tensor")
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != numel * dtype.itemsize:
        raise ValueError("the tensor's bytes are not stored as they are")
    archive.seek(entry.header_offset + _NAME_LENGTHS_PLACE)
    lengths = _NAME_LENGTHS.unpack(archive.read(_NAME_LENGTHS.size))
    return entry.header_offset + _LOCAL_HEADER_BYTES + sum(lengths)


def _contiguous(size: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    whole = torch.empty(size, device="meta").stride()
    return all(s == w for n, s, w in zip(size, stride, whole) if n > 1)
