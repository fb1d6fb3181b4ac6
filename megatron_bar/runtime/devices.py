"""Abilities of the devices at hand."""

from __future__ import annotations

import torch


def transformer_engine_runs() -> bool:
    """True where Transformer Engine is installed and has a GPU. That path has not been run."""
    from megatron.core.extensions.transformer_engine import HAVE_TE

    return HAVE_TE and torch.cuda.is_available()


def attention_by_boundaries(context: int) -> bool:
    """Whether attention keeps documents apart by where they begin, and not by a mask.

    Transformer Engine's does, and ignores masks. With `context` > 1 ranks to a row it would want
    each document padded to a multiple of 2 * context tokens, so torch's attention does it instead.
    """
    return context == 1 and transformer_engine_runs()
