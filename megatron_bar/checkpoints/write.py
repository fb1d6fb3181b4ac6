"""Writes one part of a file: pieces of tensors go from memory maps to their place, digested."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import xxhash

from megatron_bar.checkpoints.direct import DirectFile
from megatron_bar.checkpoints.mapped import is_finite, raw_bytes
from megatron_bar.checkpoints.plan import Item, ItemContent, Part, PlacedItem
from megatron_bar.runtime.errors import BarError

# Checked, digested and copied while it is in the processor's cache.
BLOCK_BYTES = 2**20


def write_part(folder: Path, part: Part) -> dict[str, Any]:
    """Write `part` into its file in `folder`; when this returns, the disk has it.

    Returns the digest of each tensor by name, and the facts that the items' makers report.

    Raises BarError, naming file and tensor, if something can't be read or written or isn't finite.
    """
    record: dict[str, Any] = {"digests": {}, "facts": []}
    path = Path(folder) / part.file
    name = part.placed[0].item.names[0]
    try:
        with DirectFile(path) as file:
            for placed, made in _made_ahead(part.placed):
                item = placed.item
                ahead = [frame for frame in placed.frames if frame[0] < placed.offsets[0]]
                for offset, frame in ahead:
                    file.write(frame, offset)
                for name, offset, size, pieces in zip(
                    item.names, placed.offsets, item.sizes, made.outputs, strict=True
                ):
                    record["digests"][name] = _write_tensor(
                        file, offset, size, _blocks(pieces, item.dtype), item, name, made
                    )
                for offset, frame in placed.frames[len(ahead) :]:
                    file.write(frame, offset)
                if made.facts:
                    record["facts"].append(made.facts)
    except OSError as error:
        raise BarError(f"{path} can't be written: {error.strerror} (at tensor {name})") from error
    return record


def _made_ahead(placed: Sequence[PlacedItem]) -> Iterator[tuple[PlacedItem, ItemContent]]:
    """Each item and what it is made of, which a thread reads and checks while the one before is
    being written."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(placed[0].item.make)
        for number, place in enumerate(placed, 1):
            made = following.result()
            if number < len(placed):
                following = reader.submit(placed[number].item.make)
            yield place, made


def _blocks(pieces: Iterable[torch.Tensor], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """`pieces` in `dtype`, as contiguous blocks of about BLOCK_BYTES."""
    for piece in pieces:
        for block in piece.reshape(-1).split(BLOCK_BYTES // dtype.itemsize):
            yield block.to(dtype)


def _write_tensor(
    file: DirectFile,
    offset: int,
    size: int,
    blocks: Iterable[torch.Tensor],
    item: Item,
    name: str,
    made: ItemContent,
) -> str:
    digest = xxhash.xxh3_128()
    end = offset + size
    for block in blocks:
        if not is_finite(block):
            raise BarError(_who_is_not_finite(name, item, made))
        data = raw_bytes(block)
        digest.update(data)
        file.write(data, offset)
        offset += len(data)
    assert offset == end, f"{name}: {end - offset} bytes are missing"
    return digest.hexdigest()


def _who_is_not_finite(name: str, item: Item, made: ItemContent) -> str:
    for label, read in made.sources:
        if not is_finite(read().contiguous()):
            return f"{label} holds NaN or Inf"
    dtype = str(item.dtype).removeprefix("torch.")
    return f"tensor {name} overflows to Inf in {dtype}; choose another --dtype"
