"""Shards of saved states: a key for each layer and expert, and boxes for a range of a parameter.

The distributed optimizer gives each rank a range of a parameter's numbers, counted row by row. Such
a range isn't a box, which is what a checkpoint stores and any layout can cut anew; but it is made
of a few: of a matrix, the rest of a first row, whole rows, and the beginning of a last one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace, nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory


def one_key_a_slice(state: Any) -> Any:
    """Give each layer's and each expert's tensors a key of their own.

    Megatron stacks layers and experts in one key. Frozen experts are left out, and it takes the
    holes they leave for lost shards. Layers and experts have global numbers, so the keys are the
    same in every layout.
    """

    def convert(entry: Any) -> Any:
        if isinstance(entry, ShardedTensorFactory):
            build = entry.build_fn

            def build_slices(*args: Any) -> Any:
                return dict_list_map_inplace(convert, build(*args))

            return dataclasses.replace(entry, build_fn=build_slices)
        if not isinstance(entry, ShardedTensor) or not entry.prepend_axis_num:
            return entry
        axes = entry.prepend_axis_num
        places = ".".join(str(place) for place in entry.global_offset[:axes])
        return dataclasses.replace(
            entry,
            key=f"{entry.key}.{places}",
            global_shape=entry.global_shape[axes:],
            global_offset=entry.global_offset[axes:],
            axis_fragmentations=entry.axis_fragmentations[axes:],
            prepend_axis_num=0,
        )

    return dict_list_map_inplace(convert, state)


def boxes_of_range(
    entry: ShardedTensor | ShardedTensorFactory,
    values: torch.Tensor,
    start: int,
    end: int,
    prefix: str,
) -> list[ShardedTensor]:
    """Shards of a flat tensor `values` that belongs to a range of the numbers of a parameter.

    `entry` says how the parameter is sharded; the keys are its keys after `prefix` and a dot. The
    shards are views of `values`.
    """
    parameter = entry.data
    is_factory = isinstance(entry, ShardedTensorFactory)
    stored = list(nested_values(entry.build())) if is_factory else [entry]
    found = []
    for shard in stored:  # a part of the parameter's numbers, in one piece
        assert shard.data.is_contiguous() and _memory(shard.data) == _memory(parameter)
        first = shard.data.storage_offset() - parameter.storage_offset()
        lo, hi = max(start, first), min(end, first + shard.data.numel())
        place = lo - start
        for offset, size in boxes(shard.local_shape, lo - first, max(lo, hi) - first):
            count = math.prod(size)
            found.append(
                dataclasses.replace(
                    shard,
                    key=f"{prefix}.{shard.key}",
                    dtype=values.dtype,
                    data=values[place : place + count].view(size),
                    local_shape=size,
                    global_offset=tuple(map(sum, zip(shard.global_offset, offset))),
                    axis_fragmentations=None,  # no regular grid
                    replica_id=(*shard.replica_id[:-1], 0),  # data-parallel ranks have other ranges
                )
            )
            place += count
    return found


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def boxes(
    shape: Sequence[int], start: int, end: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Offsets and sizes of boxes that make up the range `start` to `end`, in its order.

    They are boxes of a tensor of `shape`, whose numbers are counted row by row.
    """
    if start == end:
        return
    if len(shape) == 1:
        yield (start,), (end - start,)
        return
    row = math.prod(shape[1:])
    first, behind = -(-start // row), end // row  # of the rows that are whole
    if first > behind:
        yield from _within(behind, shape, start - behind * row, end - behind * row)
        return
    if start < first * row:
        yield from _within(first - 1, shape, start - (first - 1) * row, row)
    if first < behind:
        yield (first, *(0 for _ in shape[1:])), (behind - first, *shape[1:])
    if behind * row < end:
        yield from _within(behind, shape, 0, end - behind * row)


def _within(
    row: int, shape: Sequence[int], start: int, end: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for offset, size in boxes(shape[1:], start, end):
        yield (row, *offset), (1, *size)
