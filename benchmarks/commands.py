"""What benchmarks of whole commands share: page cache, time, processor time and memory of a run."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.01


@dataclass(frozen=True)
class Run:
    """One command: seconds, processor seconds of all its processes, anonymous bytes of one."""

    seconds: float
    cpu_seconds: float
    peak_anonymous: int


def files_of(folders: Iterable[Path]) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in files_of([folder]))


def set_cache(folders: Iterable[Path], cold: bool) -> None:
    """Put all files into the page cache, or take them out of it."""
    os.sync()
    for path in files_of(folders):
        with open(path, "rb", buffering=0) as file:
            if cold:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(1 << 24):
                    pass


def run(command: Sequence[str], **environment: str) -> Run:
    """Run `command` to its end. Raises CalledProcessError, with what it said, if it fails.

    Memory is anonymous memory (RssAnon), which mapped files are no part of: that of the largest
    process, sampled every 10 ms.
    """
    start = time.perf_counter()
    process = psutil.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    )
    cpu: dict[int, float] = {}
    peak = 0
    while process.poll() is None:
        for pid in [process.pid, *_descendants(process.pid)]:
            cpu[pid], anonymous = _usage(pid, cpu.get(pid, 0.0))
            peak = max(peak, anonymous)
        time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, process.stdout.read())
    return Run(seconds, sum(cpu.values()), peak)


def _descendants(pid: int) -> list[int]:
    """Read from the kernel's lists: to look through all processes would disturb what is timed."""
    found = []
    try:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found + [below for child in found for below in _descendants(child)]


def _usage(pid: int, cpu_before: float) -> tuple[float, int]:
    """Processor seconds so far, and anonymous bytes; what was known of a process that has ended."""
    try:
        times = psutil.Process(pid).cpu_times()
        status = Path(f"/proc/{pid}/status").read_text()
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return cpu_before, 0
    line = next((line for line in status.splitlines() if line.startswith("RssAnon")), "RssAnon: 0")
    return times.user + times.system, int(line.split()[1]) * 1024


def copy_command(source: Path, target: Path, to_disk: bool) -> list[str]:
    """cp, and with `to_disk` until the disk has the bytes, as converters wait for it."""
    sync = f" && find {target} -type f -exec sync {{}} +" if to_disk else ""
    return ["sh", "-c", f"cp -r {source} {target}{sync}"]
