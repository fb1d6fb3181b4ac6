"""The parts that compute a stage, in a line for its log: nobody should guess why it is slow."""

from __future__ import annotations

import torch
from megatron.core.optimizer import MegatronOptimizer

from megatron_bar.models.fp8 import copied_bytes
from megatron_bar.models.language_model import LanguageModel
from megatron_bar.runtime.devices import why_no_transformer_engine
from megatron_bar.runtime.fusing import kernels_in_use


def parts_in_use(model: LanguageModel, optimizer: MegatronOptimizer) -> str:
    """A line on what computes attention, products, the rest and AdamW, why that attention, and why
    not Transformer Engine.
    """
    layer = model.decoder.layers[0].self_attention
    in_fp8 = " (of frozen experts in FP8)" if any(map(copied_bytes, model.parameters())) else ""
    parts = [
        f"attention {model.attention.kind} ({model.attention.reason})",
        f"products {_library(layer.linear_qkv)}{in_fp8}",
        f"kernels {kernels_in_use()}",
        f"AdamW {_adamw(optimizer)}",
    ]
    why = why_no_transformer_engine(model.config.params_dtype)
    return ", ".join(parts) + ("" if why is None else f"; no Transformer Engine, as {why}")


def _library(part: object) -> str:
    """Whose it is. Megatron's linear layers and ours have torch multiply."""
    package = type(part).__module__.partition(".")[0]
    is_te = type(part).__name__.startswith("TE") or package == "transformer_engine"
    return "Transformer Engine's" if is_te else "apex's" if package == "apex" else "torch's"


def _adamw(optimizer: MegatronOptimizer) -> str:
    """A rank may have nothing that trains."""
    used = {
        _library(part.optimizer)
        + (", fused" if isinstance(part.optimizer, torch.optim.AdamW) else "")
        for part in optimizer.chained_optimizers
        if part.optimizer is not None
    }
    return " and ".join(sorted(used)) or "none on this rank"
