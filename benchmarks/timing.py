"""What the benchmarks share: interleaved repetitions, medians, and the machine's name."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def machine(threads: int, clock: str) -> str:
    """One line that says where figures come from."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {clock} time"
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next(
            (
                line.partition(":")[2].strip()
                for line in info.read_text().splitlines()
                if line.startswith("model name")
            ),
            cpu,
        )
    return f"{cpu}, {threads} thread(s) a process, torch {torch.__version__}, {clock} time"


def device() -> torch.device:
    """Where the contestants compute. Called inside `process_groups`."""
    return torch.device(torch.cuda.current_device())


def clock_named(name: str) -> Callable[[], float]:
    """`wall`, or `cpu` for a machine that others use too: the time this one thread computed."""
    return {"wall": time.perf_counter, "cpu": time.thread_time}[name]


def medians(
    contestants: Mapping[str, Callable[[], object]], repetitions: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of each contestant. They take turns, so that load hits all alike.

    Called inside `process_groups`, which lets a CPU have `torch.cuda.synchronize` too.
    """
    for contestant in contestants.values():
        contestant()  # the first call allocates
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repetitions):
        for name, contestant in contestants.items():
            torch.cuda.synchronize()
            start = clock()
            contestant()
            torch.cuda.synchronize()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
