"""Faults of a GPU or of the network, told from those of the program by an exit status."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator

# EX_OSERR of sysexits.h: another machine, or another attempt, may do what this one couldn't.
MACHINE_FAILED = 71


@contextlib.contextmanager
def machine_faults_told() -> Iterator[None]:
    """End with status MACHINE_FAILED, and the traceback, where the accelerator or NCCL fails."""
    try:
        yield
    except Exception as error:
        if not _of_the_machine(error):
            raise
        traceback.print_exc()
        sys.exit(MACHINE_FAILED)


def _of_the_machine(error: Exception) -> bool:
    import torch  # loads for seconds, and is loaded where there is an error of it
    import torch.distributed as dist

    return isinstance(error, (torch.AcceleratorError, dist.DistBackendError))
