"""`branch`: a dense model becomes a 2-expert model, ready to learn one domain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_bar.checkpoints.convert import SlotCopy, tokenizer_files_of, write_checkpoint
from megatron_bar.checkpoints.dcp import CheckpointReader, slot_item
from megatron_bar.checkpoints.names import (
    DENSE_OF_EXPERT,
    ROUTER_NAME,
    Slot,
    slots,
)
from megatron_bar.checkpoints.number_types import ffn_type, type_name
from megatron_bar.checkpoints.plan import Item, ItemContent
from megatron_bar.checkpoints.resume_point import open_checkpoint
from megatron_bar.models.config import ModelConfig, check_same_shape
from megatron_bar.runtime.console import say
from megatron_bar.runtime.errors import BarError

ROUTER_STD = 0.02


def branch(
    anchor: Path,
    target: Path,
    pretrained: Path | None = None,
    expert_name: str = "domain",
    seed: int = 0,
    processes: int | None = None,
    overwrite: bool = False,
) -> ModelConfig:
    """Write a branch: expert 0 is `anchor`'s FFN, expert 1 that of `pretrained` (or the anchor's).

    Shared parameters come from the anchor. Router rows are drawn from a normal distribution of
    standard deviation 0.02, cut at 3 sigma, a function of `seed` and the layer alone: branches of
    one run share the seed, so that their anchor rows agree. Both experts are active (k = 2).
    Follows the published recipe (FlexOlmo's dense_to_expert_moe without domain embeddings). All is
    stored in the anchor's types (`number_types`), to which the pretrained model's FFN is cast.

    Raises BarError unless both are dense checkpoints of the same shape.
    """
    dense = _load_dense(anchor)
    experts = [open_checkpoint(anchor)] * 2
    if pretrained is not None:
        other = _load_dense(pretrained)
        check_same_shape(pretrained, other, anchor, dense)
        experts[1] = open_checkpoint(pretrained)
        _tell_cast(dense, experts)
    model = dataclasses.replace(dense.with_experts(2), expert_names=("anchor", expert_name))
    items = [_item(slot, dense, experts, seed) for slot in slots(model)]
    write_checkpoint(
        "branch",
        target,
        model,
        items,
        [reader.folder for reader in experts],
        tokenizer_files_of(anchor),
        settings=seed,
        processes=processes,
        overwrite=overwrite,
    )
    return model


def _load_dense(folder: Path) -> ModelConfig:
    model = ModelConfig.load(folder)
    if model.num_experts is not None:
        raise BarError(f"{folder} has {model.num_experts} experts; branch starts from dense models")
    return model


def _item(slot: Slot, dense: ModelConfig, experts: list[CheckpointReader], seed: int) -> Item:
    if slot.name is ROUTER_NAME:
        return slot_item(slot, ffn_type(experts[0], dense), RouterRows(slot, seed))
    if slot.name in DENSE_OF_EXPERT:
        layer, expert = slot.index
        source, reader = Slot(dense, DENSE_OF_EXPERT[slot.name], (layer,)), experts[expert]
    else:
        source, reader = Slot(dense, slot.name, slot.index), experts[0]
    return slot_item(slot, experts[0].dtype(source), SlotCopy(reader, source))


def _tell_cast(dense: ModelConfig, experts: Sequence[CheckpointReader]) -> None:
    """Say it where the domain expert doesn't start with the pretrained model's bits."""
    anchor, other = (ffn_type(reader, dense) for reader in experts)
    if anchor != other:
        say(
            f"branch: the FFNs of {experts[1].folder} are stored in {type_name(other)}; expert 1 "
            f"starts from them in the anchor's {type_name(anchor)}"
        )


@dataclass(frozen=True)
class RouterRows:
    """Makes fresh router rows."""

    slot: Slot
    seed: int

    def __call__(self) -> ItemContent:
        return ItemContent([[router_rows(self.slot.shape, self.seed, self.slot.index[0])]])


def router_rows(shape: Sequence[int], seed: int, layer: int) -> torch.Tensor:
    """Fresh router rows `[E, H]` of one layer, counted from 0."""
    generator = torch.Generator().manual_seed(seed * 100_003 + layer)
    return torch.nn.init.trunc_normal_(
        torch.empty(shape),
        std=ROUTER_STD,
        a=-3 * ROUTER_STD,
        b=3 * ROUTER_STD,
        generator=generator,
    )
