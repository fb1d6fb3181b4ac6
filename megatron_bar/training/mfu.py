"""Model FLOPs utilisation: the share of the devices' peak that a rate of operations is.

The operations are those of useful work (models/flops.py), so the share is a lower bound of what the
devices did.
"""

from __future__ import annotations

import time

import torch

from megatron_bar.runtime.data_sheets import DATA_SHEETS

_GEMM_SIZE, _GEMM_TIMES = 640, 8


class PeakFlops:
    """Operations a second that one device can do in `dtype`.

    `tflops` if it is given, else from the table for a known GPU; on a CPU the fastest matrix
    product seen: one is timed here, and a step that was faster still raises it.
    """

    def __init__(self, dtype: torch.dtype, tflops: float | None = None) -> None:
        self.is_measured = tflops is None and not torch.cuda.is_available()
        if self.is_measured:
            self.flops = _measured(dtype)
        else:
            self.flops = 1e12 * (tflops or _known(torch.cuda.get_device_name(), dtype))

    def mfu(self, flops_per_second: float, devices: int) -> float | None:
        """The share of all devices' peak that a rate is; at most 1 where the peak is measured.

        None for a GPU that the table doesn't know.
        """
        if not self.flops:
            return None
        if self.is_measured:
            self.flops = max(self.flops, flops_per_second / devices)
        return flops_per_second / (devices * self.flops)


def _known(name: str, dtype: torch.dtype) -> float:
    for model, sheet in DATA_SHEETS.items():
        if model in name:
            return sheet.tflops[str(dtype).removeprefix("torch.")]
    return 0.0


def _measured(dtype: torch.dtype) -> float:
    left = torch.ones(_GEMM_SIZE, _GEMM_SIZE, dtype=dtype)
    right = torch.ones(_GEMM_SIZE, _GEMM_SIZE, dtype=dtype)
    fastest = float("inf")
    for _ in range(_GEMM_TIMES):
        started = time.perf_counter()
        torch.mm(left, right)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * _GEMM_SIZE**3 / fastest
