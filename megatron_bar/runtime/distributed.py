"""Processes and their groups."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from megatron_bar.runtime import cpu, precision
from megatron_bar.runtime.devices import check_ranks
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import publish, read_json, staging_path, write_json
from megatron_bar.runtime.heartbeat import hang_minutes
from megatron_bar.runtime.layout import Layout
from megatron_bar.runtime.ranks import is_main

_TIMEOUT_MINUTES = 10
Item = TypeVar("Item")
RENDEZVOUS_FILE = "MEGATRON_BAR_RENDEZVOUS_FILE"
POLL_SECONDS = 0.2


@contextlib.contextmanager
def process_groups(layout: Layout, seed: int = 0) -> Iterator[None]:
    """Join the process group that torchrun describes and set up Megatron's groups for `layout`.

    Without torchrun's environment this process is the only one. Everything is torn down on the way
    out, over gloo also after an error, so that one failed rank does not leave the others waiting.

    Raises BarError if the layout doesn't fit itself or the number of processes that run, or if this
    machine's ranks are more than its GPUs.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    layout.check()
    cpu.install()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != layout.processes:
        raise BarError(
            f"layout asks for {layout.processes} processes and {world_size} run; start them with "
            f"torchrun --nproc-per-node {layout.processes} (megatron-bar run does)"
        )
    device = _own_device()
    precision.pin()
    rank, minutes = int(os.environ.get("RANK", "0")), _timeout_minutes()
    dist.init_process_group(
        backend="gloo" if device is None else "nccl",
        timeout=timedelta(minutes=minutes),
        store=_local_store(rank, world_size),
        rank=rank,
        world_size=world_size,
        device_id=device,  # else NCCL guesses it by the rank in the world
    )
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor,
            context_parallel_size=layout.context,
            pipeline_model_parallel_size=layout.pipeline,
            expert_model_parallel_size=layout.expert,
            expert_tensor_parallel_size=layout.resolved_expert_tensor,
            distributed_timeout_minutes=minutes,
            create_gloo_process_groups=gloo_groups(),
        )
        model_parallel_cuda_manual_seed(seed + 1, force_reset_rng=True)
        yield
    except BaseException:
        # NCCL closes a group when its kernels are done, and the other ranks may be waiting in them;
        # the end of this process is what they are to see.
        if device is None or world_size == 1:
            _leave_groups()
        raise
    _leave_groups()


def _leave_groups() -> None:
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def _own_device() -> torch.device | None:
    """This rank's GPU, which is the current one from now on; None where there are none."""
    if not torch.cuda.is_available():
        return None
    check_ranks(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def gloo_groups() -> bool:
    """Whether Megatron has its groups over gloo, for what it gathers on CPUs, beside the others.

    Over NCCL it does without: gloo needs host names that lead to the right network, and nobody
    would use it.
    """
    return dist.get_backend() == "gloo"


def _timeout_minutes() -> float:
    """How long a collective waits; where hung ranks are watched for, that is to come first.

    The watch tells a rank that works, for which the others may wait, from one that hangs.
    """
    watched = hang_minutes()
    return _TIMEOUT_MINUTES if watched is None else 10 * watched


def _local_store(rank: int, world_size: int) -> dist.Store | None:
    """Where processes of one machine meet; None leaves it to torchrun's address and port.

    A lone process meets nobody, and processes that `launch.processes` started meet in a file, so
    neither needs a port that another run might hold.
    """
    if world_size == 1:
        return dist.HashStore()
    if path := os.environ.get(RENDEZVOUS_FILE):
        return dist.FileStore(path, world_size)
    return None


def on_main(function: Callable[[], Any]) -> Any:
    """The result of `function` on the main rank, for all of them. All ranks call this."""
    if not dist.is_initialized():
        return function()
    answer = [function() if is_main() else None]
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


def all_reduce_any(mine: bool) -> bool:
    """True on every rank if it is on any. All ranks call this."""
    flag = torch.tensor([float(mine)], device=torch.cuda.current_device())
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def of_all_ranks(mine: Item, group: dist.ProcessGroup | None = None) -> list[Item]:
    """The values of all ranks (of `group`), in their order, on each of them. All call this."""
    everyones = [mine] * dist.get_world_size(group)
    dist.all_gather_object(everyones, mine, group=group)
    return everyones


def first_of_ranks(mine: str | None) -> str | None:
    """The first text that a rank gives, on all of them; None if none gives one. All call this."""
    return next(filter(None, of_all_ranks(mine)), None)


@contextlib.contextmanager
def written_together(target: Path) -> Iterator[Path]:
    """A folder beside `target` for all ranks to write into, which starts empty.

    It gets its name, in place of what stood there, when all have left the block. After an error
    that the main rank sees it is removed.
    """
    staging = staging_path(target)
    if is_main():
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    dist.barrier()
    try:
        yield staging
        dist.barrier()
    except BaseException:
        if is_main():
            shutil.rmtree(staging, ignore_errors=True)
        raise
    if is_main():
        publish(staging, target)
    dist.barrier()


def from_main(path: Path, make: Callable[[], Any]) -> Any:
    """The result of `make` on the main rank, a JSON value, on every rank. Called by all of them.

    It goes through the file at `path`, so the others can wait longer than a collective may take:
    tokenizing can take hours.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return make()
    if is_main():
        path.unlink(missing_ok=True)
    dist.barrier()
    if is_main():
        write_json(path, make())
    while not path.is_file():
        time.sleep(POLL_SECONDS)
    dist.barrier()
    return read_json(path)
