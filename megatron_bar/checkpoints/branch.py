"""`branch`: a dense model becomes a 2-expert model, ready to learn one domain."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from megatron_bar.checkpoints.convert import companions_of, write_converted
from megatron_bar.checkpoints.dcp import CheckpointReader, LazySlice
from megatron_bar.checkpoints.names import (
    DENSE_FFN_NAMES,
    EXPERT_FFN_NAMES,
    ROUTER_NAME,
    Slot,
    slots,
)
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.errors import BarError

ROUTER_STD = 0.02
_DENSE_OF_EXPERT = dict(zip(EXPERT_FFN_NAMES, DENSE_FFN_NAMES))


def branch(
    anchor: Path,
    target: Path,
    pretrained: Path | None = None,
    expert_name: str = "domain",
    seed: int = 0,
    overwrite: bool = False,
) -> ModelConfig:
    """Write a branch: expert 0 is `anchor`'s FFN, expert 1 that of `pretrained` (or the anchor's).

    Shared parameters come from the anchor. Router rows are drawn from a normal distribution of
    standard deviation 0.02, cut at 3 sigma, a function of `seed` and the layer alone: branches of
    one run share the seed, so that their anchor rows agree. Both experts are active (k = 2).
    Follows the published recipe (FlexOlmo's dense_to_expert_moe without domain embeddings).

    Raises BarError unless both are dense checkpoints of the same shape.
    """
    dense = _load_dense(anchor)
    experts = [CheckpointReader(anchor)] * 2
    if pretrained is not None:
        other = _load_dense(pretrained)
        if other != dense:
            raise BarError(f"{pretrained} and {anchor} are models of different shape")
        experts[1] = CheckpointReader(pretrained)
    model = dataclasses.replace(dense.with_experts(2), expert_names=("anchor", expert_name))
    slices = [_source(slot, dense, experts, seed) for slot in slots(model)]
    write_converted(target, model, slices, companions_of(anchor), "branch", overwrite)
    return model


def _load_dense(folder: Path) -> ModelConfig:
    model = ModelConfig.load(folder)
    if model.num_experts is not None:
        raise BarError(f"{folder} has {model.num_experts} experts; branch starts from dense models")
    return model


def _source(
    slot: Slot, dense: ModelConfig, experts: list[CheckpointReader], seed: int
) -> LazySlice:
    if slot.name is ROUTER_NAME:
        # fp32, whatever the model's dtype: routing is computed in fp32.
        return LazySlice(slot, torch.float32, lambda: router_rows(slot, seed))
    if slot.name in _DENSE_OF_EXPERT:
        layer, expert = slot.index
        from_slot = Slot(dense, _DENSE_OF_EXPERT[slot.name], (layer,))
        reader = experts[expert]
    else:
        from_slot, reader = Slot(dense, slot.name, slot.index), experts[0]
    return LazySlice(slot, reader.dtype(from_slot), lambda: reader.read(from_slot))


def router_rows(slot: Slot, seed: int) -> torch.Tensor:
    """Fresh router rows `[E, H]` of one layer."""
    (layer,) = slot.index
    generator = torch.Generator().manual_seed(seed * 100_003 + layer)
    return torch.nn.init.trunc_normal_(
        torch.empty(slot.shape), std=ROUTER_STD, a=-3 * ROUTER_STD, b=3 * ROUTER_STD,
        generator=generator,
    )
