"""Abilities of the devices at hand."""

from __future__ import annotations

import torch


def transformer_engine_runs() -> bool:
    """True where Transformer Engine is installed and has a GPU."""
    from megatron.core.extensions.transformer_engine import HAVE_TE

    return HAVE_TE and torch.cuda.is_available()
