"""The plan of a conversion: tensors, where each lies in which file, and who makes it.

An `Item` says what is written and can be sent to another process. A format (`dcp`, `hf_weights`)
gives each item its place, so that the bytes of every file are settled before the first is written:
any number of processes writes the same files, and a conversion that was cut short knows what is
missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

# A part is what one process writes in one go, and what is kept when a conversion is cut short.
PART_BYTES = 256 * 2**20


@dataclass
class ItemContent:
    """The content of an item.

    `outputs` holds, for each of the item's tensors, pieces whose bytes follow one another; an
    iterator may make them one by one. `sources` read what they were made of, by names for people:
    when an output isn't finite, they tell which file is to blame. `facts` goes into the record of
    the part once everything is written.
    """

    outputs: Sequence[Iterable[torch.Tensor]]
    sources: Sequence[tuple[str, Callable[[], torch.Tensor]]] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """Tensors that are made together. `make` is called in the process that writes them."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    make: Callable[[], ItemContent]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each tensor."""
        return tuple(torch.Size(shape).numel() * self.dtype.itemsize for shape in self.shapes)

    @property
    def nbytes(self) -> int:
        return sum(self.sizes)


@dataclass(frozen=True)
class PlacedItem:
    """An item, the offset of each of its tensors, and the bytes that frame them in the file."""

    item: Item
    offsets: tuple[int, ...]
    frames: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True)
class Part:
    """Neighbours in one file, up to byte `end`."""

    file: str
    placed: tuple[PlacedItem, ...]
    end: int


def parts_of(file: str, placed: Iterable[PlacedItem]) -> Iterator[Part]:
    """Cut a file's items, in the order of their places, into parts of about PART_BYTES."""
    part: list[PlacedItem] = []
    size = 0
    for place in placed:
        if part and size + place.item.nbytes > PART_BYTES:
            yield _part(file, part)
            part, size = [], 0
        part.append(place)
        size += place.item.nbytes
    if part:
        yield _part(file, part)


def _part(file: str, placed: list[PlacedItem]) -> Part:
    ends = [
        offset + size for place in placed for offset, size in zip(place.offsets, place.item.sizes)
    ]
    ends += [offset + len(frame) for place in placed for offset, frame in place.frames]
    return Part(file, tuple(placed), max(ends))


def description(parts: Iterable[Part]) -> list[Any]:
    """The plan as JSON: equal for equal plans."""
    return [
        [
            part.file,
            part.end,
            [[p.item.names, p.item.shapes, str(p.item.dtype), p.offsets] for p in part.placed],
        ]
        for part in parts
    ]
