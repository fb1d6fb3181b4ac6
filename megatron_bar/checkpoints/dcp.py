"""`torch_dist` checkpoints without a model or a process group: slices in, slices out.

The format is torch.distributed.checkpoint's: `__N_0.distcp` files hold chunks of tensors, each as
torch.save writes it, and the pickled `.metadata` says which chunk lies where. A torch.save archive
keeps the tensor's bytes as they are, 64-byte aligned, between some framing. So chunks are read by
memory map, and written by copying bytes between frames.

torch's own reader and writer would do, but read in 1.6 times the processor time and 2.2 times the
memory, run what a pickle asks for, and can't go on with what was cut short: docs/own-code.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from megatron_bar.checkpoints.dcp_index import (
    Chunk,
    Index,
    Place,
    StoredTensor,
    import_classes,
    read_index,
    write_index,
)
from megatron_bar.checkpoints.manifest import Manifest
from megatron_bar.checkpoints.mapped import MappedFiles
from megatron_bar.checkpoints.names import Slot
from megatron_bar.checkpoints.plan import Item, ItemContent, Part, PlacedItem, parts_of
from megatron_bar.checkpoints.torch_archive import ALIGNMENT, bytes_start, frames
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import write_json

FILE_BYTES = 2**30
# Megatron-Core's CheckpointingConfig; importing it would cost seconds at each command.
_CONFIG = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


class Readable(Protocol):
    """A slot, or a tensor under a key of its own: what a CheckpointReader finds and reads."""

    @property
    def key(self) -> str: ...

    @property
    def index(self) -> tuple[int, ...]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def global_shape(self) -> tuple[int, ...]: ...

    @property
    def label(self) -> str: ...


def chunk_of(slot: Readable) -> Chunk:
    """The chunk of the slot's slice: its place in its key's global tensor."""
    return Chunk(
        offsets=torch.Size((*slot.index, *(0 for _ in slot.shape))),
        sizes=torch.Size((*(1 for _ in slot.index), *slot.shape)),
    )


def slot_item(slot: Slot, dtype: torch.dtype, make: Callable[[], ItemContent]) -> Item:
    """The item to write into `slot`: `make` gives one output, the slice."""
    return Item((slot.label,), (slot.shape,), dtype, make)


class CheckpointFormat:
    """Slots laid out in `.distcp` files of at most FILE_BYTES, or one slot."""

    def __init__(self, slots: Sequence[Slot], items: Sequence[Item]) -> None:
        self.items = items
        self.parts: list[Part] = []
        self._index = Index({}, {})
        number = end = 0
        placed: list[PlacedItem] = []
        for slot, item in zip(slots, items, strict=True):
            if placed and end + item.nbytes > FILE_BYTES:
                self.parts += parts_of(_file_name(number), placed)
                number, end, placed = number + 1, 0, []
            start = -(-end // ALIGNMENT) * ALIGNMENT
            chunk = chunk_of(slot)
            before, after = frames(chunk.sizes, item.dtype)
            data = start + len(before)
            end = data + item.nbytes + len(after)
            around = ((start, before), (data + item.nbytes, after))
            placed.append(PlacedItem(item, (data,), around))
            self._register(slot, item, chunk, Place(_file_name(number), start, end - start))
        self.parts += parts_of(_file_name(number), placed)

    def _register(self, slot: Slot, item: Item, chunk: Chunk, place: Place) -> None:
        tensor = self._index.tensors.setdefault(
            slot.key, StoredTensor(item.dtype, torch.Size(slot.global_shape), [])
        )
        assert tensor.dtype == item.dtype, f"{slot.label}: {item.dtype} in {tensor.dtype}"
        tensor.chunks.append(chunk)
        self._index.places[slot.key, chunk.offsets] = place

    def prepare(self) -> None:
        import_classes()

    def finish(self, folder: Path) -> None:
        write_index(folder, self._index)
        torch.save({}, folder / "common.pt")
        write_json(folder / "metadata.json", _CONFIG)


def _file_name(number: int) -> str:
    return f"__{number}_0.distcp"


@dataclass(frozen=True)
class _Overlap:
    """The common part of a chunk and of the region that is read, as seen from either."""

    chunk: Chunk
    in_chunk: tuple[slice, ...]
    in_region: tuple[slice, ...]
    numel: int


_Chunks = list[tuple[_Overlap, torch.Tensor]]


class CheckpointReader:
    """Reads single slices of a checkpoint, whatever layout wrote it, and checks them where the
    checkpoint has a manifest.

    Raises BarError if `folder` holds no readable checkpoint, or a tensor is missing, damaged or of
    another shape than the model's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.of(self.folder)
        self._files = MappedFiles(self.folder)
        self._by_index: dict[str, dict[tuple[int, ...], list[Chunk]]] = {}
        try:
            self._index = read_index(self.folder)
        except Exception as error:  # unpickling damaged bytes raises anything
            raise BarError(
                f"{folder} is not a readable checkpoint "
                f"({folder}/.metadata: {type(error).__name__})"
            ) from None

    def _entry(self, slot: Readable) -> StoredTensor:
        entry = self._index.tensors.get(slot.key)
        if entry is None:
            raise BarError(f"{self.folder}: tensor {slot.key} is missing")
        # Rows past the vocabulary differ with the tensor parallelism that wrote the checkpoint.
        expected = tuple(slot.global_shape)
        if tuple(entry.size)[1:] != expected[1:] or (slot.index and entry.size[0] != expected[0]):
            raise BarError(
                f"{self.folder}: tensor {slot.key} has shape {tuple(entry.size)}, "
                f"the model needs {expected}"
            )
        return entry

    def has(self, key: str) -> bool:
        """Whether the checkpoint has a tensor under this key."""
        return key in self._index.tensors

    def dtype(self, slot: Readable) -> torch.dtype:
        return self._entry(slot).dtype

    def recorded_digest(self, slot: Readable) -> str | None:
        """The digest of the slot's bytes that the manifest gives, without reading them."""
        return None if self.manifest is None else self.manifest.xxh3(slot.label)

    def where(self, slot: Readable) -> str:
        """File and tensor, for errors."""
        overlaps = self._overlaps(slot, self._entry(slot))
        files = sorted({self._place(slot.key, o.chunk).file for o in overlaps})
        return f"{self.folder}/{','.join(files)}: tensor {slot.label}"

    def read(self, slot: Readable) -> torch.Tensor:
        """The slot's slice: a view of the file where one chunk holds it, and not to be written to.

        Padding rows that the checkpoint doesn't have are zero.
        """
        return self._checked(slot, self._chunks(slot))

    def _checked(self, slot: Readable, chunks: _Chunks) -> torch.Tensor:
        tensor = _whole(slot, chunks)
        if tensor is None:
            tensor = _assembled(slot, self._entry(slot).dtype, chunks, 0, slot.shape[0])
        if self.manifest is not None:
            self.manifest.check(slot.label, tensor, self.where(slot).partition(": ")[0])
        return tensor

    def bands(self, slot: Readable, numbers: int) -> Iterator[torch.Tensor]:
        """The rows of `read`, in bands of about `numbers`.

        What lies in several chunks is put together band by band, unless a manifest's digest of the
        whole is to be checked.
        """
        chunks = self._chunks(slot)
        rows = max(numbers // torch.Size(slot.shape[1:]).numel(), 1)
        if self.manifest is not None or _whole(slot, chunks) is not None:
            yield from self._checked(slot, chunks).split(rows)
            return
        dtype = self._entry(slot).dtype
        for first in range(0, slot.shape[0], rows):
            yield _assembled(slot, dtype, chunks, first, min(first + rows, slot.shape[0]))

    def _chunks(self, slot: Readable) -> _Chunks:
        """The chunks that hold parts of the slot, as views of their files."""
        entry = self._entry(slot)
        return [
            (overlap, self._chunk(slot.key, entry, overlap.chunk))
            for overlap in self._overlaps(slot, entry)
        ]

    def _overlaps(self, slot: Readable, entry: StoredTensor) -> list[_Overlap]:
        region = chunk_of(slot)
        near = self._chunks_by_index(slot.key, len(slot.index)).get(slot.index, ())
        found = [o for chunk in near if (o := _overlap(region, chunk)) is not None]
        stored = torch.Size(
            min(offset + size, whole) - offset
            for offset, size, whole in zip(region.offsets, region.sizes, entry.size)
        )
        if sum(o.numel for o in found) != stored.numel():
            raise BarError(
                f"{self.folder}: tensor {slot.label} is not whole; .metadata lacks chunks of it"
            )
        return found

    def _chunks_by_index(self, key: str, axes: int) -> dict[tuple[int, ...], list[Chunk]]:
        """The chunks of a key that have to do with each layer and expert."""
        if key not in self._by_index:
            found = self._by_index[key] = {}
            for chunk in self._index.tensors[key].chunks:
                ranges = (range(o, o + n) for o, n in zip(chunk.offsets[:axes], chunk.sizes))
                for index in itertools.product(*ranges):
                    found.setdefault(index, []).append(chunk)
        return self._by_index[key]

    def _place(self, key: str, chunk: Chunk) -> Place:
        try:
            return self._index.places[key, chunk.offsets]
        except KeyError:
            raise BarError(
                f"{self.folder}: .metadata doesn't say where tensor {key} at "
                f"{tuple(chunk.offsets)} is"
            ) from None

    def _chunk(self, key: str, entry: StoredTensor, chunk: Chunk) -> torch.Tensor:
        """A chunk as a view of its file."""
        place = self._place(key, chunk)
        dtype, shape = entry.dtype, tuple(chunk.sizes)
        try:
            with self._files.window(place.file, place.offset, place.length) as archive:
                start = place.offset + bytes_start(archive, dtype, shape)
            return self._files.tensor(place.file, start, dtype, shape)
        except BarError as error:
            raise BarError(f"{error} (at tensor {key})") from None
        except Exception as error:  # reading damaged bytes raises anything
            raise BarError(
                f"{self.folder / place.file}: tensor {key} can't be read "
                f"({type(error).__name__}); the file is damaged"
            ) from error


def _whole(slot: Readable, chunks: _Chunks) -> torch.Tensor | None:
    """A view of the chunk that holds the whole slot, if one does."""
    if len(chunks) == 1 and chunks[0][0].numel == torch.Size(slot.shape).numel():
        return chunks[0][1][chunks[0][0].in_chunk].reshape(slot.shape)
    return None


def _assembled(
    slot: Readable, dtype: torch.dtype, chunks: _Chunks, first: int, last: int
) -> torch.Tensor:
    """Rows `first` to `last` of the slot, put together of the chunks that hold parts of it."""
    tensor = torch.zeros((last - first, *slot.shape[1:]), dtype=dtype)
    axis = len(slot.index)  # of the rows, in chunks and regions
    for overlap, chunk in chunks:
        rows, *columns = overlap.in_region[axis:]
        start, end = max(first, rows.start), min(last, rows.stop)
        if start < end:
            held = chunk[overlap.in_chunk][(0,) * axis]
            target = tensor[(slice(start - first, end - first), *columns)]
            target.copy_(held[start - rows.start : end - rows.start])
    return tensor


def _overlap(region: Chunk, chunk: Chunk) -> _Overlap | None:
    starts = tuple(map(max, region.offsets, chunk.offsets))
    ends = tuple(
        min(a + b, c + d)
        for a, b, c, d in zip(region.offsets, region.sizes, chunk.offsets, chunk.sizes)
    )
    if any(start >= end for start, end in zip(starts, ends)):
        return None

    def seen_from(origin: torch.Size) -> tuple[slice, ...]:
        return tuple(slice(s - o, e - o) for s, e, o in zip(starts, ends, origin))

    numel = torch.Size(e - s for s, e in zip(starts, ends)).numel()
    return _Overlap(chunk, seen_from(chunk.offsets), seen_from(region.offsets), numel)
