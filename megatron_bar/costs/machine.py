"""The GPUs, wires and file system that a plan assumes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from megatron_bar.runtime.errors import BarError
from megatron_bar.training.mfu import PEAK_TFLOPS

GB = 1e9


@dataclass(frozen=True)
class Device:
    """Rates of a GPU's memory and wires in GB/s, from data sheets."""

    memory_rate: float
    nvlink: float  # one way
    network: float  # of the adapter that each GPU has in the usual node of eight


DEVICES = {
    "H100 PCIe": Device(2000, 64, 25),  # PCIe 5.0 in place of NVLink
    "H100": Device(3350, 450, 50),
    "H200": Device(4800, 450, 50),
    "A100": Device(2000, 300, 25),
}
# Of a wire's data sheet that large messages reach. A guess: rings of 8 H100s and of NDR adapters
# are usually reported at 0.75 to 0.9.
WIRE_SHARE = 0.8
# Seconds from one rank of a ring to the next: what NCCL itself reckons with to choose an algorithm
# (src/graph/tuning.cc, ring, protocol Simple).
NVLINK_LATENCY, NETWORK_LATENCY = 3.4e-6, 14e-6


@dataclass(frozen=True)
class FileSystem:
    """GB/s that a shared file system takes and gives: to all nodes together, and to one."""

    total: float = 100.0
    node: float = 5.0

    def seconds(self, size: float, nodes: int) -> float:
        """Seconds for `size` bytes that `nodes` nodes write or read in equal shares."""
        return size / (GB * min(self.total, max(nodes, 1) * self.node))


@dataclass(frozen=True)
class Measured:
    """A speed that one GPU reached alone: a row of `efficiency.TABLE`, or of a site file."""

    mfu: float = 0.0  # of the data sheet's peak, as a stage's metrics have it
    gpu: str = "H100"
    hidden: int = 4096
    tokens: int = 8192  # of a micro-batch
    trains: str = "expert"  # one expert and its router row, or all
    recompute: str = "none"  # none or full
    transformer_engine: bool = True
    source: str = ""


@dataclass(frozen=True)
class Hardware:
    """The keys of a site file's `machine`. None stands for the data sheet's."""

    gpu: str = "H100"
    memory: int = 80  # GiB of one GPU
    nvlink: float | None = None  # GB/s that a GPU sends to others of its node in a ring
    network: float | None = None  # GB/s that a GPU sends to other nodes
    file_system: FileSystem = field(default_factory=FileSystem)
    # false: hours as measured without it, when attention went by masks
    transformer_engine: bool = True
    measured: list[Measured] = field(default_factory=list)  # on these GPUs; corrects the table


@dataclass(frozen=True)
class Machine(Hardware):
    """The hardware, and how a plan looks at it."""

    per_node: int = 8
    # Of the data sheet's peak that a training step reaches with its communication, where the user
    # says so; else it is worked out from what was measured.
    mfu: float | None = None
    checkpoint_rate: float = 2e9  # bytes a second, for stages that only convert

    @property
    def memory_bytes(self) -> int:
        return self.memory << 30

    def peak(self, dtype: str) -> float:
        """Operations a second of one GPU, by its data sheet."""
        return 1e12 * PEAK_TFLOPS[self.gpu][getattr(torch, dtype)]

    @property
    def memory_rate(self) -> float:
        """Bytes a second that one GPU reads from its memory."""
        return GB * DEVICES[self.gpu].memory_rate

    @property
    def nvlink_rate(self) -> float:
        """Bytes a second that one GPU sends to another of its node."""
        return GB * (self.nvlink or WIRE_SHARE * DEVICES[self.gpu].nvlink)

    @property
    def network_rate(self) -> float:
        """Bytes a second that one GPU sends to another node."""
        return GB * (self.network or WIRE_SHARE * DEVICES[self.gpu].network)

    def nodes(self, processes: int) -> int:
        """Nodes that so many processes fill."""
        return -(-processes // self.per_node)


def check_machine(machine: Machine, where: str = "") -> None:
    """Raise BarError for a GPU that isn't known and for figures that can't be.

    `where` names the file that they are from.
    """
    for key, name in [("gpu", machine.gpu)] + [
        (f"measured.{number}.gpu", row.gpu) for number, row in enumerate(machine.measured)
    ]:
        if name not in DEVICES:
            known = ", ".join(DEVICES)
            raise BarError(f"{where}{key} {name}: its peak isn't known; there are {known}")
    if machine.mfu is not None and not 0 < machine.mfu <= 1:
        raise BarError(f"{where}mfu {machine.mfu} is not in (0, 1]")
    rates = {
        "memory": machine.memory,
        "nvlink": machine.nvlink,
        "network": machine.network,
        "file_system.total": machine.file_system.total,
        "file_system.node": machine.file_system.node,
    }
    for key, rate in rates.items():
        if rate is not None and not rate > 0:
            raise BarError(f"{where}{key} must be more than 0, and is {rate}")
    for number, row in enumerate(machine.measured):
        key = f"{where}measured.{number}"
        if not 0 < row.mfu <= 1:
            raise BarError(f"{key}.mfu {row.mfu} is not in (0, 1]; it is the mfu of the metrics")
        if row.trains not in ("expert", "all") or row.recompute not in ("none", "full"):
            raise BarError(f"{key}: trains is expert or all, and recompute none or full")
        if min(row.hidden, row.tokens) < 1:
            raise BarError(f"{key}: hidden and tokens must be 1 or more")
