"""The cores beside each rank's GPU, on nodes whose memory is in several parts (NUMA).

One task a node starts all its ranks, so that srun's own binding (--cpu-bind, --gpu-bind) can't tell
them apart. Memory follows: Linux gives a process what lies beside the core it runs on.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from megatron_bar.runtime.devices import VISIBLE_GPUS

_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,pci.bus_id", "--format=csv,noheader")


def cpus_of_ranks(ranks: int, system: Path = Path("/sys")) -> list[set[int]] | None:
    """The cores of this job beside each rank's GPU, which has the rank's number among the visible.

    None where that isn't known of all `ranks` of a node, or there is nothing to choose.
    """
    try:
        shown = subprocess.run(_QUERY, capture_output=True, text=True, timeout=30, check=True)
        buses = _visible([line.split(", ") for line in shown.stdout.splitlines()])
        ours = os.sched_getaffinity(0)
        cpus = [_beside(bus, system) & ours for bus in buses[:ranks]]
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    whole = len(cpus) == ranks and all(cpus)
    return cpus if whole and any(beside != ours for beside in cpus) else None


def _visible(gpus: Sequence[Sequence[str]]) -> list[str]:
    """The bus ids of those in CUDA_VISIBLE_DEVICES, in its order."""
    listed = os.environ.get(VISIBLE_GPUS)
    if listed is None:
        return [bus for _, _, bus in gpus]
    buses = {name: bus for index, uuid, bus in gpus for name in (index, uuid)}
    return [buses[name] for name in listed.split(",") if name in buses]


def _beside(bus: str, system: Path) -> set[int]:
    """The cores of the NUMA node at which a PCI device is: `00000000:18:00.0` is nvidia-smi's word
    for Linux's `0000:18:00.0`."""
    domain, _, place = bus.lower().partition(":")
    node = int((system / f"bus/pci/devices/{domain[-4:]}:{place}/numa_node").read_text())
    if node < 0:  # the machine has only one
        return os.sched_getaffinity(0)
    ranges = (system / f"devices/system/node/node{node}/cpulist").read_text().strip().split(",")
    ends = [[int(end) for end in of.split("-")] for of in ranges]
    return {cpu for of in ends for cpu in range(of[0], of[-1] + 1)}
