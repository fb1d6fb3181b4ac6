"""The choice of what computes attention in training, made in one place, with its reason.

`varlen` is torch's flash attention over packed documents (torch.nn.attention.varlen). It needs no
Transformer Engine and no mask. `transformer_engine` computes the same from the same boundaries.
`masks` is torch's attention with a mask of S x S for each row: the CPU's way, and the judge of the
others.

Transformer Engine isn't the default where it is installed, since its attention over packed
documents gave gradients that were no numbers: see docs/gpu.md.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass

import torch

from megatron_bar.runtime.devices import why_no_transformer_engine
from megatron_bar.runtime.errors import BarError

VARLEN, TRANSFORMER_ENGINE, MASKS = "varlen", "transformer_engine", "masks"
AUTO = "auto"
WORDS = (AUTO, VARLEN, TRANSFORMER_ENGINE, MASKS)  # what may be wished for
_LARGEST_HEAD = 256  # of flash attention


@dataclass(frozen=True)
class AttentionChoice:
    """One of the kinds above, and why it is that one, as the end of a sentence."""

    kind: str
    reason: str

    @property
    def by_boundaries(self) -> bool:
        """Whether documents are kept apart by where they begin, in one long sequence, not by a
        mask.
        """
        return self.kind != MASKS


def choose_attention(
    device: torch.device | str,
    dtype: torch.dtype,
    head_dim: int,
    context: int = 1,
    wanted: str = AUTO,
) -> AttentionChoice:
    """The attention of a model that trains in `dtype` on `device`, `context` ranks to a row.

    Raises BarError if `wanted`, which is one of WORDS, can't be had.
    """
    faults = {
        VARLEN: _no_varlen(device, dtype, head_dim),
        TRANSFORMER_ENGINE: _no_transformer_engine(device, dtype, context),
        MASKS: None,
    }
    if wanted != AUTO:
        if wanted not in faults:
            raise BarError(f"attention {wanted!r} is unknown; there are {', '.join(WORDS)}")
        if fault := faults[wanted]:
            raise BarError(f"attention: {wanted} can't be used here, as {fault}; leave it at auto")
        return AttentionChoice(wanted, "it was asked for")
    if (no_varlen := faults[VARLEN]) is None:
        return AttentionChoice(VARLEN, "it goes by document boundaries and needs no mask")
    if faults[TRANSFORMER_ENGINE] is None:
        return AttentionChoice(TRANSFORMER_ENGINE, f"not varlen, as {no_varlen}")
    return AttentionChoice(MASKS, no_varlen)


def _on_gpu(device: torch.device | str) -> bool:
    return torch.device(device).type == "cuda"


def _no_varlen(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why torch's attention over packed documents can't be used; None if it can."""
    if not _on_gpu(device):
        return "the device is no GPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"flash attention doesn't compute in {str(dtype).removeprefix('torch.')}"
    if head_dim > _LARGEST_HEAD or head_dim % 8:
        return (
            f"flash attention takes heads of at most {_LARGEST_HEAD} numbers, a multiple of 8, "
            f"and these have {head_dim}"
        )
    if "window_size" not in varlen_parameters():
        return f"torch {torch.__version__} has no varlen attention with windows (2.11 has)"
    return None


def _no_transformer_engine(
    device: torch.device | str, dtype: torch.dtype, context: int
) -> str | None:
    if not _on_gpu(device):
        return "the device is no GPU"
    if why := why_no_transformer_engine(dtype):
        return why
    if context > 1:
        return (
            f"it wants each document padded to a multiple of {2 * context} tokens "
            f"with context {context}"
        )
    return None


@functools.cache
def varlen_parameters() -> tuple[str, ...]:
    """The parameters of torch's varlen_attn, which differ from version to version; () without."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return ()
    return tuple(inspect.signature(varlen_attn).parameters)
