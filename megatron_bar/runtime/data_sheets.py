"""Rates of GPUs, from NVIDIA's data sheets. Loads nothing, so that `status` is quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DataSheet:
    """One GPU: 1e12 dense operations a second by number type, and GB/s of its memory and wires."""

    tflops: Mapping[str, float]
    memory: float
    nvlink: float  # one way
    network: float  # of the adapter that each GPU has in the usual node of eight


DATA_SHEETS = {
    # PCIe 5.0 in place of NVLink
    "H100 PCIe": DataSheet({"bfloat16": 756, "float32": 51}, 2000, 64, 25),
    "H100": DataSheet({"bfloat16": 989, "float32": 67}, 3350, 450, 50),
    "H200": DataSheet({"bfloat16": 989, "float32": 67}, 4800, 450, 50),
    "A100": DataSheet({"bfloat16": 312, "float32": 19.5}, 2000, 300, 25),
}
