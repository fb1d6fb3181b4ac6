"""This process's rank in a run, for those that may not have torch loaded."""

from __future__ import annotations

import os
import socket
import sys


def is_main() -> bool:
    """True in one process of the run: the one that prints and writes small files."""
    dist = sys.modules.get("torch.distributed")  # who hasn't loaded it has joined no others
    return dist is None or not dist.is_initialized() or dist.get_rank() == 0


def own_host() -> str:
    """This machine's name, as SLURM has it where it started this process."""
    return os.environ.get("SLURMD_NODENAME", socket.gethostname())
