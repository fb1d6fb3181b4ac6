"""`.metadata` of a `torch_dist` checkpoint: which chunk of which tensor lies where.

It is a pickle of torch.distributed.checkpoint's classes. Importing these takes most of a second,
and unpickling by the book runs whatever a file asks for. So it is read as what it says, into inert
records, and torch's classes are needed for writing alone.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FILE_NAME = ".metadata"


@dataclass(frozen=True)
class Chunk:
    """A box of a global tensor that is stored in one piece."""

    offsets: torch.Size
    sizes: torch.Size


@dataclass(frozen=True)
class StoredTensor:
    """A global tensor, and the chunks that are stored of it."""

    dtype: torch.dtype
    size: torch.Size
    chunks: list[Chunk]


@dataclass(frozen=True)
class Place:
    """The place of a chunk's archive in a folder."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Index:
    """Tensors by key, and the place of each chunk by its tensor's key and its offsets."""

    tensors: dict[str, StoredTensor]
    places: dict[tuple[str, torch.Size], Place]


class _Record:
    """What is pickled of an object: the arguments it is made with, and its state."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state
        if isinstance(state, dict):
            vars(self).update(state)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch", "Size"):
            return torch.Size
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        return type(name, (_Record,), {})


def read_index(folder: Path) -> Index:
    """Read the index of a checkpoint. Raises any exception where it is missing or damaged."""
    metadata = _Unpickler(io.BytesIO((Path(folder) / FILE_NAME).read_bytes())).load()
    tensors = {
        key: StoredTensor(
            entry.properties.state[0],
            entry.size,
            [Chunk(chunk.offsets, chunk.sizes) for chunk in entry.chunks],
        )
        for key, entry in metadata.state_dict_metadata.items()
        if type(entry).__name__ == "TensorStorageMetadata"
    }
    places = {
        (index.fqn, index.offset): Place(stored.relative_path, stored.offset, stored.length)
        for index, stored in metadata.storage_data.items()
        if index.fqn in tensors
    }
    return Index(tensors, places)


def import_classes() -> None:
    """Import what `write_index` needs, which takes most of a second."""
    import torch.distributed.checkpoint.filesystem  # noqa: F401


def write_index(folder: Path, index: Index) -> None:
    """Write `index` as torch.distributed.checkpoint reads it."""
    from torch.distributed.checkpoint import metadata as dcp
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    tensors: dict[str, dcp.TensorStorageMetadata | dcp.BytesStorageMetadata] = {
        key: dcp.TensorStorageMetadata(
            dcp.TensorProperties(dtype=tensor.dtype),
            tensor.size,
            [dcp.ChunkStorageMetadata(chunk.offsets, chunk.sizes) for chunk in tensor.chunks],
        )
        for key, tensor in index.tensors.items()
    }
    stored = {}
    for key, tensor in index.tensors.items():
        for number, chunk in enumerate(tensor.chunks):
            place = index.places[key, chunk.offsets]
            stored[dcp.MetadataIndex(key, chunk.offsets, number)] = _StorageInfo(
                place.file, place.offset, place.length
            )
    metadata = dcp.Metadata(tensors, planner_data={}, storage_data=stored)
    (folder / FILE_NAME).write_bytes(pickle.dumps(metadata))
