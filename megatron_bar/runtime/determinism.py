"""The same bits twice on a GPU, for a process that is to compute so.

On a GPU many sums are taken in whatever order their parts come: gradients of attention and of
embeddings, products that a library splits, reductions over ranks. Each has a slower way with a
fixed order, and a switch of its own.
"""

from __future__ import annotations

import os

import torch


def compute_deterministically() -> None:
    """Take the way with a fixed order everywhere. Called before CUDA, or any group, is used.

    An operation of torch that has no such way raises RuntimeError from now on.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # of two that NVIDIA names, the faster one
    os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0"  # Transformer Engine
    # Of NCCL's ways the one that a switch between GPUs sums up. A user who names some knows why.
    os.environ.setdefault("NCCL_ALGO", "^NVLS")
    torch.use_deterministic_algorithms(True)
    # Else every tensor is filled before it is written, which costs time and no promise needs.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
