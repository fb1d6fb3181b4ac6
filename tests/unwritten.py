"""Memory that nobody has written yet holds no numbers: whoever reads it is found out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 28)  # bytes; small and large blocks come from two pools
_SHARE = 0.5  # of the memory that is free


@contextlib.contextmanager
def unwritten_is_nan() -> Iterator[None]:
    """On a CPU what `torch.empty` makes inside the block is filled.

    On a GPU that would choose other kernels, so there the memory is only left so by others before
    the block, as in a run that goes on. Fresh memory is zero in most cases and hides the fault.
    """
    if torch.cuda.is_available():
        _leave_nans_behind()
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _leave_nans_behind() -> None:
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    of_each = int(free * _SHARE) // len(_SIZES)
    kept = [
        torch.full((size // 4,), torch.nan, device="cuda")
        for size in _SIZES
        for _ in range(min(of_each // size, 4096))
    ]
    del kept  # torch keeps the memory, and gives it out again as it is
