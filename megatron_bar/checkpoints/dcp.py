"""Streaming access to `torch_dist` checkpoints: one slice at a time, no model, no process group.

torch.distributed.checkpoint asks its planner for each tensor when it writes it; ours makes the
tensor then, so that memory holds one slice, whatever the checkpoint's size.
"""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_bar.checkpoints.names import Slot
from megatron_bar.runtime.errors import BarError

# With no_dist torch says, at every save and load, that it assumes a single process.
logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)


@dataclass(frozen=True)
class LazySlice:
    """What to write into `slot`: a dtype, and a function that makes the tensor when asked."""

    slot: Slot
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]

    @property
    def chunk(self) -> ChunkStorageMetadata:
        return chunk_of(self.slot)


def chunk_of(slot: Slot) -> ChunkStorageMetadata:
    """Where the slot's slice lies in its key's global tensor."""
    return ChunkStorageMetadata(
        offsets=torch.Size((*slot.index, *(0 for _ in slot.shape))),
        sizes=torch.Size((*(1 for _ in slot.index), *slot.shape)),
    )


class _LazyPlanner(dcp.DefaultSavePlanner):
    def __init__(self, slices: Iterable[LazySlice]) -> None:
        super().__init__()
        self.slices = {
            MetadataIndex(s.slot.key, s.chunk.offsets): s for s in slices
        }

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([
            WriteItem(
                index=index,
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=s.chunk,
                    properties=TensorProperties(dtype=s.dtype),
                    size=torch.Size(s.slot.global_shape),
                ),
            )
            for index, s in self.slices.items()
        ], planner_data={})
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        s = self.slices[MetadataIndex(write_item.index.fqn, write_item.index.offset)]
        tensor = s.make()
        assert tuple(tensor.shape) == s.slot.shape and tensor.dtype == s.dtype, s.slot.hf_names
        # A view would be saved with all of the storage behind it.
        return tensor.reshape(s.chunk.sizes).clone(memory_format=torch.contiguous_format)


def write_checkpoint(folder: Path, slices: Iterable[LazySlice]) -> None:
    """Write `slices` into `folder` as a checkpoint that Megatron-Core loads in any layout.

    Raises BarError if a slice can't be read or written.
    """
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=True)
    try:
        dcp.save({}, storage_writer=writer, planner=_LazyPlanner(slices), no_dist=True)
    except dcp.api.CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        if isinstance(cause, (BarError, KeyboardInterrupt)):
            raise cause from None
        raise BarError(f"{folder} can't be written: {cause}") from cause
    torch.save({}, Path(folder) / "common.pt")
    save_config(CheckpointingConfig(sharded_backend="torch_dist"), str(folder))


class _OneTensorPlanner(dcp.DefaultLoadPlanner):
    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self.target = target

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        view = self.target
        for dim, (offset, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths)):
            view = view.narrow(dim, offset, length)
        return view

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        pass

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise AssertionError("model tensors are not stored as bytes")


class CheckpointReader:
    """Reads single slices of a checkpoint, whatever layout wrote it.

    Raises BarError if `folder` holds no readable checkpoint, or a tensor is missing or has another
    shape than the model has.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._reader = dcp.FileSystemReader(self.folder)
        try:
            self._metadata = self._reader.read_metadata()
        except (OSError, EOFError, pickle.UnpicklingError):
            raise BarError(f"{folder} is not a readable checkpoint (no valid .metadata)") from None
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)

    def _entry(self, slot: Slot) -> TensorStorageMetadata:
        entry = self._metadata.state_dict_metadata.get(slot.key)
        if not isinstance(entry, TensorStorageMetadata):
            raise BarError(f"{self.folder}: tensor {slot.key} is missing")
        # Rows past the vocabulary differ with the tensor parallelism that wrote the checkpoint.
        expected = tuple(slot.global_shape)
        if tuple(entry.size)[1:] != expected[1:] or (slot.index and entry.size[0] != expected[0]):
            raise BarError(
                f"{self.folder}: tensor {slot.key} has shape {tuple(entry.size)}, "
                f"the model needs {expected}"
            )
        return entry

    def dtype(self, slot: Slot) -> torch.dtype:
        return self._entry(slot).properties.dtype

    def read(self, slot: Slot) -> torch.Tensor:
        """The slot's slice; padding rows that the checkpoint doesn't have are zero."""
        entry = self._entry(slot)
        chunk = chunk_of(slot)
        target = torch.zeros(tuple(chunk.sizes), dtype=entry.properties.dtype)
        items = create_read_items_for_chunk_list(slot.key, entry, [chunk])
        try:
            self._reader.read_data(LoadPlan(items), _OneTensorPlanner(target)).wait()
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise BarError(
                f"{self.folder}: tensor {slot.key} can't be read ({type(error).__name__}); "
                "the checkpoint is damaged"
            ) from error
        return target.reshape(slot.shape)
