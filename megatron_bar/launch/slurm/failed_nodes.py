"""Machines on which a run's jobs failed: `slurm/failed-nodes.txt`, a line a failure.

One that has two is left out of what is submitted or queued again. It is a text for people too, who
take lines out of it, or remove it, once a machine is well again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

FAILED_NODES = "failed-nodes.txt"
_FAILURES = 2  # the job scripts count to the same number


def failed_nodes_path(run: Path) -> Path:
    return run / "slurm" / FAILED_NODES


def note_failed(run: Path, hosts: Sequence[str], what: str) -> None:
    """Add a line for each of `hosts`. One node of a job calls this."""
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    with open(failed_nodes_path(run), "a") as file:
        file.writelines(f"{host}  {when}  {what}\n" for host in hosts)


def left_out(run: Path) -> list[str]:
    """Machines with two failures or more, in alphabetical order."""
    path = failed_nodes_path(run)
    lines = path.read_text().splitlines() if path.is_file() else []
    failures = Counter(line.split()[0] for line in lines if line.strip())
    return sorted(host for host, count in failures.items() if count >= _FAILURES)
