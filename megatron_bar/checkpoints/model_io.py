"""A live model's tensors, to and from a checkpoint, in any layout.

Ranks that hold the same tensor share the work: one of them writes it, and at a load one of them
reads it and sends it to the others.
"""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace, nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedTensor,
    ShardedTensorFactory,
    apply_factories,
)
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from megatron.core.transformer.module import MegatronModule
from torch.distributed.checkpoint.api import CheckpointException

from megatron_bar.checkpoints.names import Slot, slots
from megatron_bar.checkpoints.number_types import holds, stored_types, type_name
from megatron_bar.checkpoints.resume_point import open_checkpoint
from megatron_bar.checkpoints.shard_writer import ShardWriter
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.stopping import ContinueLater

_Entry: TypeAlias = ShardedTensor | ShardedTensorFactory
# Files of a distributed checkpoint, beside the tensors.
_FILES = ("metadata.json", ".metadata")
_COMMON = "common.pt"  # only where Megatron-Core before 0.19 wrote it, which trips over its absence
# What Megatron-Core and torch raise over files that are cut short or overwritten.
_DAMAGE = (
    CheckpointingException,
    OSError,
    EOFError,
    LookupError,
    ValueError,
    RuntimeError,
    pickle.UnpicklingError,
)


def _replicas() -> dist.ProcessGroup:
    """The ranks that may hold the same tensors as this one."""
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def sharded_model_state(model: MegatronModule) -> dict[str, Any]:
    """This rank's shards of the model, without the empty extra states of local layers."""
    state = model.sharded_state_dict(metadata={"dp_cp_group": _replicas()})
    return {key: value for key, value in state.items() if not key.endswith("_extra_state")}


def load_model(model: MegatronModule, folder: Path) -> None:
    """Fill `model` from a checkpoint that any layout, or a converter, wrote.

    Raises BarError if a tensor is missing or damaged.
    """
    model.load_state_dict(load_shards(sharded_model_state(model), folder), strict=False)


def load_shards(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A sharded state dict, filled from a distributed checkpoint; every rank takes part.

    Raises BarError if a tensor or a file is missing or damaged; ContinueLater, on all ranks, if a
    stop signal came to one of them.
    """
    for name in _FILES:
        if not (Path(folder) / name).is_file():
            raise BarError(f"{folder} can't be loaded: {name} is missing")
    strategy = FullyParallelLoadStrategyWrapper(TorchDistLoadShardedStrategy(), _replicas())
    try:
        return dist_checkpointing.load(state, str(folder), strategy)
    except (torch.OutOfMemoryError, dist.DistError):
        raise  # not the files' fault
    except AttributeError as error:
        if (Path(folder) / _COMMON).is_file():
            raise
        raise BarError(f"{folder} can't be loaded: {_COMMON} is missing") from error
    except CheckpointException as error:  # all ranks raise it if one does
        failures = [failure for failure, _ in error.failures.values()]
        for failure in failures:
            if isinstance(failure, ContinueLater):  # torch catches that of a rank too
                raise failure from None
        raise _damage(folder, failures[0]) from error
    except _DAMAGE as error:
        raise _damage(folder, error) from error


def _damage(folder: Path, error: BaseException) -> BarError:
    reason = (str(error).splitlines() or [f"a file is damaged ({type(error).__name__})"])[0]
    return BarError(f"{folder} can't be loaded: {reason}")


def save_model(model: MegatronModule, folder: Path, start: Path | None = None) -> None:
    """Write the model's tensors into `folder`, which exists; every rank takes part.

    With `start`, the checkpoint that the model was loaded from, each is written in the type that it
    has there, and those that don't train are the same to the bit (`number_types`).

    Raises BarError for a weight that the type in `start` can't say.
    """
    state = sharded_model_state(model)
    save_shards(state if start is None else _as_stored(state, start), folder)


def save_shards(state: dict[str, Any], folder: Path) -> dict[str, str]:
    """Write a sharded state dict into `folder`; every rank takes part.

    Returns the digests of the files that this rank wrote, by name.
    """
    writer = ShardWriter()
    dist_checkpointing.save(
        state, str(folder), _shared_out(writer), validate_access_integrity=False
    )
    return writer.digests


def begin_save(state: dict[str, Any], folder: Path) -> tuple[AsyncRequest, ShardWriter]:
    """Return the request that does as `save_shards` when it is called, and who knows the digests.

    Every rank takes part, and calls the request's functions.
    """
    writer, more = ShardWriter(), {}
    if "async_strategy" in inspect.signature(dist_checkpointing.save).parameters:
        more["async_strategy"] = "mcore"  # Megatron-Core 0.19 prefers a package of its own
    request = dist_checkpointing.save(
        state,
        str(folder),
        _shared_out(writer),
        validate_access_integrity=False,
        async_sharded_save=True,
        **more,
    )
    return request, writer


def _shared_out(writer: ShardWriter) -> FullyParallelSaveStrategyWrapper:
    """`writer` with its work shared out. It also proves that the shards make up whole tensors."""
    return FullyParallelSaveStrategyWrapper(writer, _replicas())


def _as_stored(state: dict[str, Any], start: Path) -> dict[str, Any]:
    """`state` in the types of the checkpoint `start`. What is cast lies in host memory."""
    types, original = stored_types(start), _Original(start)
    return {name: _in_type(entry, types[entry.key], original) for name, entry in state.items()}


def _in_type(entry: _Entry, dtype: torch.dtype, original: _Original) -> _Entry:
    weight = entry.data
    if weight.dtype == dtype:
        return entry
    if weight.requires_grad or holds(weight.dtype, dtype):
        data = weight.detach().to("cpu", dtype)
        if not torch.isfinite(data).all():
            raise BarError(
                f"a weight of {entry.key} overflows {type_name(dtype)}, in which the checkpoint "
                "that the stage started from stores it; import the anchor with --dtype bfloat16"
            )
    else:  # computing has rounded it
        data = original.read(entry)
    if isinstance(entry, ShardedTensor):
        return dataclasses.replace(entry, data=data, dtype=dtype)
    return dataclasses.replace(entry, data=data)


class _Original:
    """This rank's shards as they are stored in the checkpoint that a model was loaded from."""

    def __init__(self, folder: Path) -> None:
        self._reader = open_checkpoint(folder)
        self._slots: dict[str, dict[tuple[int, ...], Slot]] = {}
        for slot in slots(ModelConfig.load(folder)):
            self._slots.setdefault(slot.key, {})[slot.index] = slot

    def read(self, entry: _Entry) -> torch.Tensor:
        if isinstance(entry, ShardedTensor):
            return self._shard(entry)
        return entry.merge_fn(dict_list_map_outplace(self._shard, entry.build()))

    def _shard(self, shard: ShardedTensor) -> torch.Tensor:
        slots_of_key = self._slots[shard.key]
        axes = len(next(iter(slots_of_key)))  # that say the layer and the expert
        offsets, sizes = shard.global_offset, _shape_in_key(shard)
        whole = self._reader.read(slots_of_key[tuple(offsets[:axes])])
        held = whole[tuple(slice(o, o + n) for o, n in zip(offsets[axes:], sizes[axes:]))]
        # Rows that pad the vocabulary for this layout may not be there.
        missing = sizes[axes] - held.shape[0]
        rows = torch.cat([held, held.new_zeros(missing, *held.shape[1:])])
        return rows.reshape(shard.local_shape)


def stacked_gradients(model: MegatronModule) -> dict[str, torch.Tensor]:
    """The gradients of a model that is whole in this process, by checkpoint key.

    They take the place of the parameters, which are lost.
    """
    for parameter in model.parameters():
        parameter.data = parameter.grad
    state = sharded_model_state(model)
    apply_factories(state)
    stacked: dict[str, torch.Tensor] = {}
    for shard in nested_values(state):
        if isinstance(shard, ShardedTensor):
            whole = stacked.setdefault(shard.key, torch.zeros(shard.global_shape))
            place = (slice(o, o + n) for o, n in zip(shard.global_offset, _shape_in_key(shard)))
            whole[tuple(place)] = shard.data.reshape(_shape_in_key(shard))
    return stacked


def _shape_in_key(shard: ShardedTensor) -> tuple[int, ...]:
    """The shard's shape with the axes of length 1 that say its layer and expert."""
    return (1,) * shard.prepend_axis_num + tuple(shard.local_shape)
