"""The key `fp8_frozen_experts`: where it can be had, and what it does to a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.utils import unwrap_model

from megatron_bar.models.all_experts import AllExperts
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.fp8 import MULTIPLE_OF, OLDEST, multiply_in_fp8
from megatron_bar.recipe.training import Rlvr, Training
from megatron_bar.runtime.errors import BarError, raise_all
from megatron_bar.runtime.layout import Layout

KEY = "fp8_frozen_experts"


def check_fp8(
    training: Training,
    model: ModelConfig,
    layout: Layout,
    trainable: Sequence[str],
    where: str,
) -> None:
    """Raise BarError, a line each, for what stands against the key, if it is set.

    `trainable` are the groups that train, by name.
    """
    if training.fp8_frozen_experts:
        faults = _faults(training, model, layout, trainable)
        raise_all([f"{where}: {KEY} {fault}" for fault in faults])


def _faults(
    training: Training, model: ModelConfig, layout: Layout, trainable: Sequence[str]
) -> Iterator[str]:
    if isinstance(training, Rlvr):
        yield (
            "isn't offered in RLVR, which compares probabilities with those that answers were "
            "generated with; leave it out"
        )
    if not model.all_experts_active:
        yield "has an effect only on experts that get every token; leave it out"
    elif all(f"expert.{e}" in trainable for e in range(model.ffns_per_layer)):
        yield "has no effect, as all experts train; leave it out"
    if training.dtype == "float32":
        yield "wants dtype: bfloat16, and this stage computes in float32"
    for name, size in (
        ("hidden", model.hidden_size),
        ("FFN", model.ffn_hidden_size // layout.resolved_expert_tensor),
    ):
        if size % MULTIPLE_OF:
            yield f"wants multiples of {MULTIPLE_OF}, and the {name} size on a rank is {size}"


def multiply_frozen_in_fp8(wrapped: DistributedDataParallel) -> None:
    """Have experts that are frozen, and loaded, multiply in FP8 from now on.

    Raises BarError for a model that isn't in bfloat16, and for a GPU that is too old.
    """
    config = unwrap_model(wrapped).config
    if not config.bf16:
        raise BarError(
            f"{KEY} wants bfloat16, and the stage computes in what its start is stored in, "
            "float32; add dtype: bfloat16 or leave it out"
        )
    if torch.cuda.is_available() and (has := torch.cuda.get_device_capability()) < OLDEST:
        wanted, found = (".".join(map(str, version)) for version in (OLDEST, has))
        raise BarError(
            f"{KEY} wants a GPU of compute capability {wanted} or newer (H100, L40), and "
            f"{torch.cuda.get_device_name()} has {found}; leave it out"
        )
    for part in wrapped.modules():
        if isinstance(part, AllExperts):
            for weight in part.weights:
                if not weight.requires_grad:
                    multiply_in_fp8(weight)
