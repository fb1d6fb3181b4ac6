"""Room on the disk for what a stage that trains writes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import is_main_replica
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch.distributed.checkpoint.api import CheckpointException

from megatron_bar.checkpoints.model_io import sharded_model_state
from megatron_bar.checkpoints.number_types import stored_types
from megatron_bar.runtime.console import say
from megatron_bar.runtime.disk import disk_of, explain_disk_faults, free_bytes, lacking, readable
from megatron_bar.runtime.distributed import is_main, of_all_ranks, on_main
from megatron_bar.runtime.errors import BarError

_FP32 = torch.float32.itemsize


def point_bytes(itemsize: int) -> int:
    """Bytes of a trained element in a state to go on from, where its weight has `itemsize`.

    The weight, two moments, and the fp32 value of a weight that is less.
    """
    return itemsize + 2 * _FP32 + (_FP32 if itemsize < _FP32 else 0)


@dataclass(frozen=True)
class Sizes:
    """Bytes on disk, of all ranks together."""

    checkpoint: int
    point: int  # a state to go on from


def sizes_of(model: torch.nn.Module, start: Path | None) -> Sizes:
    """Sizes of a model whose parameters are open or frozen as they are to be. All ranks call this.

    Its checkpoint has the types of `start`, the one that it was loaded from, if any.
    """
    mine = [
        entry for entry in sharded_model_state(model).values() if is_main_replica(entry.replica_id)
    ]
    types = {entry.key: entry.data.dtype for entry in mine}
    types |= {} if start is None else stored_types(start)
    trained = [entry.data for entry in mine if entry.data.requires_grad]
    sizes = torch.tensor(
        [
            sum(types[entry.key].itemsize * entry.data.numel() for entry in mine),
            sum(point_bytes(tensor.itemsize) * tensor.numel() for tensor in trained),
        ],
        device=torch.cuda.current_device(),
    )
    dist.all_reduce(sizes)
    return Sizes(*sizes.tolist())


def check_disk_space(folder: Path, sizes: Sizes, points: int, what: str) -> None:
    """Compare what a stage will write into `folder`, at most `points` states, with what is free.

    Says so where that may be too little. Raises BarError, on every rank, where the checkpoint alone
    is too much. All ranks call this.
    """
    if refusal := on_main(lambda: lacking(folder / "checkpoint", sizes.checkpoint)):
        raise BarError(f"{what}: {refusal}; make room, or set runs to a folder on another disk")
    free = on_main(lambda: free_bytes(folder))
    needed = sizes.checkpoint + points * sizes.point
    if free < needed:
        say(
            f"warning: {what}: the disk at {disk_of(folder)} has {readable(free)} free, and up to "
            f"{readable(needed)} will be written: a checkpoint of {readable(sizes.checkpoint)} and "
            f"{points} states to go on from (keep) of {readable(sizes.point)} each"
        )


@contextlib.contextmanager
def require_disk_space(target: Path, needed: int, stands: Callable[[], str]) -> Iterator[None]:
    """Write `needed` bytes into `target` in the block, as all ranks do together.

    Raises BarError if there isn't room for them, before or in the block; `stands` says for the
    message what is there already.
    """
    if refusal := on_main(lambda: lacking(target, needed)):
        raise BarError(f"{refusal}; {stands()}; make room and run it again")
    with (
        explain_disk_faults(target, lambda: f", {readable(needed)} are needed; {stands()}"),
        _reason_on_all_ranks(),
    ):
        yield


@contextlib.contextmanager
def _reason_on_all_ranks() -> Iterator[None]:
    """Raise an error of a save with its reasons; Megatron-Core gives them to the main rank alone.

    From 0.19 on it only logs them, where they arose. All ranks leave the block with a
    CheckpointException if one does.
    """
    logged = _Messages(logging.ERROR)
    logger = logging.getLogger(filesystem_async.__name__)
    logger.addHandler(logged)
    try:
        yield
    except CheckpointException as error:
        mine = "\n".join([str(error)] * is_main() + logged.texts)
        raise RuntimeError("\n".join(filter(None, of_all_ranks(mine)))) from error
    finally:
        logger.removeHandler(logged)


class _Messages(logging.Handler):
    """Keeps what is logged, in `texts`."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
