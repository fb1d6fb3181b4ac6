"""The meaning of fp32: IEEE arithmetic, on any device and in any image.

NVIDIA's tensor cores multiply fp32 as TF32, with 10 bits of mantissa, wherever that is allowed, and
NVIDIA's own images allow it by an environment variable. Routers compute in fp32, since they tell
experts of almost the same weight apart; a stage in float32 is one for proofs. So it is allowed
nowhere.
"""

from __future__ import annotations

import os

import torch


def pin() -> None:
    """Have this process multiply fp32 in fp32. Called before CUDA's libraries are used."""
    # Read by cuBLAS and cuDNN themselves, for whoever calls them, Transformer Engine for one.
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
