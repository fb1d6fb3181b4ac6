"""Abilities of the devices at hand."""

from __future__ import annotations

import os
import sys

import torch

from megatron_bar.runtime import broken_te
from megatron_bar.runtime.errors import BarError

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
# NCCL's own switch for more ranks than GPUs, which it refuses otherwise; good for tests alone.
SHARED_GPUS = "NCCL_MULTI_RANK_GPU_ENABLE"


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES gives them.

    Where it is set, by the user or a batch system, that is what it lists.
    """
    count = torch.cuda.device_count()  # of the driver's, where it can: it leaves CUDA uninitialised
    listed = os.environ.get(VISIBLE_GPUS)
    names = [str(i) for i in range(count)] if listed is None else listed.split(",")
    return [name.strip() for name in names[:count]]


def ranks_share_gpus() -> bool:
    """Whether more ranks than GPUs may run, several on one."""
    return os.environ.get(SHARED_GPUS) == "1"


def check_ranks(ranks: int) -> None:
    """Raise BarError where there are GPUs, but not one for each of so many ranks of a machine."""
    count = torch.cuda.device_count()
    if 0 < count < ranks and not ranks_share_gpus():
        listed = os.environ.get(VISIBLE_GPUS)
        limit = "" if listed is None else f" ({VISIBLE_GPUS}={listed})"
        raise BarError(
            f"{ranks} processes need a GPU each, and {count} can be seen here{limit}; "
            "make the layout smaller, or use a machine with more"
        )


def transformer_engine_runs() -> bool:
    """True where Transformer Engine is installed and has a GPU."""
    from megatron.core.extensions.transformer_engine import HAVE_TE

    return HAVE_TE and torch.cuda.is_available()


def why_no_transformer_engine(dtype: torch.dtype) -> str | None:
    """The reason, as the end of a sentence, why a model that computes in `dtype` does without
    Transformer Engine; None where it doesn't.
    """
    if not torch.cuda.is_available():
        return "there is no GPU"
    if not transformer_engine_runs():
        if (fault := broken_te.fault()) is not None:
            return f"it can't be loaded: {fault}"
        return (
            "this Megatron-Core can't use its version"
            if broken_te.NAME in sys.modules
            else "it isn't installed"
        )
    if dtype is torch.float32:
        # Seen on an H200: gradients were off by 3e-3 to 8e-3 with it, by 7e-6 without.
        return "it rounds products of float32 to TF32"
    return None
