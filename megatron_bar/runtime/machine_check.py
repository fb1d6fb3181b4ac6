"""A look at the machines before the first step: seconds, where a slow one costs days.

Every rank multiplies matrices, exchanges data with ranks of other nodes, and reads its GPU's clock;
one rank of each node writes into the run's folder. Who is slower than most is named. A step goes at
the pace of its slowest rank, and nothing else in a training says which one that is.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_bar.runtime.console import say, warn
from megatron_bar.runtime.distributed import of_all_ranks
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.health import (
    HEALTH_CHECK,
    MODES,
    OFF,
    REFUSE,
    Measured,
    slow_ranks,
    summary,
)
from megatron_bar.runtime.machine_faults import MACHINE_FAILED
from megatron_bar.runtime.ranks import is_main, own_host

_ROUNDS = 20
_PLAIN = "--format=csv,noheader,nounits"


def check_health(
    folder: Path, measure: Callable[[Path, Sequence[str]], Measured] | None = None
) -> None:
    """Measure each rank and name those that are slow; all ranks call this, in their process group.

    The environment's MEGATRON_BAR_HEALTH_CHECK says what follows: `warn` tells of them, `refuse`
    also ends their ranks with status MACHINE_FAILED. Without it, and for a lone rank, nothing is
    measured. What is written into `folder` is removed.

    Raises BarError for another word in the variable.
    """
    mode = os.environ.get(HEALTH_CHECK) or OFF
    if mode not in MODES:
        raise BarError(f"{HEALTH_CHECK} is {mode!r} and should be one of {', '.join(MODES)}")
    if mode == OFF or dist.get_world_size() == 1:
        return
    started = time.monotonic()
    hosts = of_all_ranks(own_host())
    everyones = of_all_ranks((measure or _measure)(folder, hosts))
    say(f"health check: {summary(everyones)}; in {time.monotonic() - started:.0f} s")
    slow = slow_ranks(everyones)
    if is_main():
        for lines in slow.values():
            for line in lines:
                warn(f"health check: {line}")
    if mode == REFUSE and slow:
        if dist.get_rank() in slow:
            sys.exit(MACHINE_FAILED)
        dist.barrier()  # to which those don't come: their end is what ends this rank


def _measure(folder: Path, hosts: Sequence[str]) -> Measured:
    rank = dist.get_rank()
    on_gpu = dist.get_backend() == "nccl"
    first_of_host = rank == hosts.index(hosts[rank])
    products, clock = _products(8192 if on_gpu else 256)
    return Measured(
        hosts[rank],
        products,
        _exchange(hosts, (64 if on_gpu else 1) << 20),
        clock,
        _writing(folder, (256 if on_gpu else 1) << 20) if first_of_host else None,
    )


def _products(size: int) -> tuple[float, float | None]:
    """TFLOP/s of a product of square matrices, and the clock while it is computed."""
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.current_device() if on_gpu else "cpu"
    factor = torch.ones(size, size, device=device, dtype=torch.bfloat16 if on_gpu else None)
    clock = None
    for _ in range(2):  # the first time starts libraries, and warms up
        started = time.perf_counter()
        for _ in range(_ROUNDS):
            factor @ factor
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    if on_gpu:
        for _ in range(5 * _ROUNDS):  # it is busy for the question
            factor @ factor
        clock = _clock()
        torch.cuda.synchronize()
    return 2 * size**3 * _ROUNDS / seconds / 1e12, clock


def _clock() -> float | None:
    """MHz of this rank's GPU by nvidia-smi, where that answers."""
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    query = ("nvidia-smi", f"--id=GPU-{gpu}", "--query-gpu=clocks.sm", _PLAIN)
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        return float(subprocess.run(query, capture_output=True, timeout=10, check=True).stdout)
    return None


def _exchange(hosts: Sequence[str], size: int) -> float | None:
    """GB/s with a rank of the node before and of the one behind, the better of the two.

    Two beside each other have the same figure; only a node that is slow with both is at fault.
    """
    rank = dist.get_rank()
    nodes = list(dict.fromkeys(hosts))
    members = [[other for other, host in enumerate(hosts) if host == node] for node in nodes]
    if len(nodes) == 1 or len({len(of) for of in members}) > 1:  # between ranks of one node
        members = [[other] for other in range(len(hosts))]
    place = next(i for i, of in enumerate(members) if rank in of)
    local = members[place].index(rank)
    count = len(members)
    sent = torch.ones(size // 4, device=torch.cuda.current_device())
    received = torch.empty_like(sent)
    found = []
    for start in (0, 1):  # nodes 0 and 1, 2 and 3, ...; then 1 and 2, 3 and 4, ..., and the ring
        partner = place + 1 if (place - start) % 2 == 0 else place - 1
        if count % 2 and not 0 <= partner < count:
            continue  # of an odd number one has none
        other = members[partner % count][local]
        for _ in range(2):
            started = time.perf_counter()
            for _ in range(_ROUNDS):
                works = dist.batch_isend_irecv(
                    [dist.P2POp(dist.isend, sent, other), dist.P2POp(dist.irecv, received, other)]
                )
                for work in works:
                    work.wait()
            received[0].item()  # there
            seconds = time.perf_counter() - started
        found.append(size * _ROUNDS / seconds / 1e9)
    return max(found, default=None)


def _writing(folder: Path, size: int) -> float:
    """GB/s of a file that is written and is on the disk, or on the server."""
    path = folder / f".health-{dist.get_rank()}"
    block = os.urandom(1 << 20)  # what a file system can't compress
    try:
        started = time.perf_counter()
        with open(path, "wb") as file:
            for _ in range(size // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return size / (time.perf_counter() - started) / 1e9
    finally:
        path.unlink(missing_ok=True)
