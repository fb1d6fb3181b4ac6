"""`merge`: branches become one model, with the anchor and every domain expert.

What is computed, for each tensor:

- shared parameters, and the anchor's FFN with `anchor_ffn="average"`: the weighted mean in fp32 of
  the inputs' tensors, in their own type; where all agree, their bits;
- shared parameters with a `rule`: what that makes of the anchor's and the branches' (`merging`);
- the anchor's FFN otherwise: a copy, after a proof that all inputs have the same;
- a domain expert's FFN and router row: a copy;
- the anchor's router row: the mean over the branches (a merged model counts for its branches).

Adding a branch to a merged model of n models gives (n * merged + branch) / (n + 1). What an expert
that is dropped or replaced brought into that mean stays in it; only a merge of the remaining
branches' own checkpoints leaves it out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_bar.checkpoints.average import (
    Deviation,
    Mean,
    deviations_by_group,
    deviations_of,
    mean_blocks,
)
from megatron_bar.checkpoints.convert import SlotCopy, tokenizer_files_of, write_checkpoint
from megatron_bar.checkpoints.dcp import CheckpointReader, slot_item
from megatron_bar.checkpoints.mapped import same_numbers
from megatron_bar.checkpoints.merge_plan import (
    Expert,
    Input,
    Inputs,
    choose_experts,
    default_weights,
    group_weights,
    open_inputs,
)
from megatron_bar.checkpoints.merging import Rule
from megatron_bar.checkpoints.merging.combined import Combined
from megatron_bar.checkpoints.merging.sources import Holder, SharedTensor
from megatron_bar.checkpoints.names import (
    DENSE_OF_EXPERT,
    EXPERT_FFN_NAMES,
    ROUTER_NAME,
    Slot,
    slots,
)
from megatron_bar.checkpoints.plan import Item, ItemContent
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.names import ANCHOR
from megatron_bar.runtime.errors import BarError


@dataclasses.dataclass(frozen=True)
class Merged:
    """The model that was written, and how far the inputs lay from what was averaged."""

    model: ModelConfig
    by_tensor: list[Deviation]
    by_group: list[Deviation]


def merge(
    models: Sequence[Path],
    target: Path,
    anchor: Path | None = None,
    average: str = "published",
    weights: Sequence[str] = (),
    anchor_ffn: str = "same",
    experts: Sequence[str] | None = None,
    rule: Rule | None = None,
    processes: int | None = None,
    overwrite: bool = False,
) -> Merged:
    """Write the merged model: the anchor, then the domain experts in the order given.

    `models` are branches, or a merged model and branches to add to it. `average` says what shared
    parameters are the mean of: "published" takes the branches and the untouched dense `anchor`,
    "branches" the branches alone; `weights` are rules of `merge_plan.group_weights` that go before
    it. `anchor_ffn` is "same", or "average" for branches that trained the anchor. `experts` names
    the experts to keep, anchor first. All experts are active, unless a merged model had fewer.
    `rule` goes in place of a mean of shared parameters.

    Raises BarError unless all inputs are of one shape, and their anchors the same to the bit; with
    a rule, unless they are branches and their anchor, and no mean is asked for too.
    """
    if anchor_ffn not in ("same", "average"):
        raise BarError(f"--anchor-ffn: {anchor_ffn!r} is neither same nor average")
    inputs = open_inputs(models, anchor)
    if rule is not None:
        _check_for_rule(inputs, average, weights)
    chosen = choose_experts(inputs, experts)
    by_group = group_weights(inputs, default_weights(inputs, average), weights)
    model = _merged_model(inputs, chosen, average, is_mean=not weights and rule is None)
    make = _Maker(inputs, chosen, by_group, anchor_ffn, rule)
    items = [make.item(slot) for slot in slots(model)]
    settings = [by_group, anchor_ffn, repr(rule), [[str(e.source.folder), e.index] for e in chosen]]
    facts = write_checkpoint(
        "merge",
        target,
        model,
        items,
        [i.folder for i in inputs.all],
        tokenizer_files_of(inputs.with_experts[0].folder),
        settings,
        processes,
        overwrite,
    )
    return Merged(model, deviations_of(facts), deviations_by_group(facts))


def _check_for_rule(inputs: Inputs, average: str, weights: Sequence[str]) -> None:
    if average != "published" or weights:
        raise BarError("--rule goes in place of a mean; leave out --average and --weights")
    if inputs.merged is not None:
        raise BarError(
            f"{inputs.merged.folder} is a merged model, and --rule combines changes "
            "from the anchor; give all branches, and --anchor CKPT"
        )
    if inputs.anchor is None:
        raise BarError("--rule combines changes from the anchor; give --anchor CKPT")


def _merged_model(
    inputs: Inputs, chosen: Sequence[Expert], average: str, is_mean: bool
) -> ModelConfig:
    first = inputs.with_experts[0].model
    active = first.experts_per_token
    if active is None or active == first.num_experts:
        active = len(chosen)
    models = [name for i in inputs.with_experts for name in i.models]
    if inputs.anchor is not None and average == "published":
        models.insert(0, inputs.anchor.name)
    return dataclasses.replace(
        first.with_experts(len(chosen), min(active, len(chosen))),
        expert_names=tuple(expert.name for expert in chosen),
        merged_from=tuple(models) if is_mean else (),
    )


class _Maker:
    """Says how each slot of the merged model is made."""

    def __init__(
        self,
        inputs: Inputs,
        chosen: Sequence[Expert],
        weights: dict[str, dict[str, float]],
        anchor_ffn: str,
        rule: Rule | None,
    ) -> None:
        self.inputs = inputs
        self.chosen = chosen
        self.weights = weights
        self.anchor_ffn = anchor_ffn
        self.rule = rule

    def item(self, slot: Slot) -> Item:
        first = self.inputs.with_experts[0]
        if slot.name is ROUTER_NAME:
            row_sources = tuple(
                (e.source.reader, _same(e.source, slot), e.index) for e in self.chosen[1:]
            )
            anchor_rows = tuple(
                (i.reader, _same(i, slot), i.branches) for i in self.inputs.with_experts
            )
            dtype = first.reader.dtype(_same(first, slot))
            return slot_item(slot, dtype, _RouterRows(slot, anchor_rows, row_sources))
        if slot.name in EXPERT_FFN_NAMES and slot.index[1]:
            expert = self.chosen[slot.index[1]]
            source = Slot(expert.source.model, slot.name, (slot.index[0], expert.index))
            reader = expert.source.reader
            return slot_item(slot, reader.dtype(source), SlotCopy(reader, source))
        dtype = first.reader.dtype(_same(first, slot))
        if slot.name in EXPERT_FFN_NAMES and self.anchor_ffn == "same":
            sources = tuple((i.reader, _same(i, slot)) for i in self.inputs.all)
            return slot_item(slot, dtype, _SameCopy(sources))
        if self.rule is not None and slot.name not in EXPERT_FFN_NAMES:
            return slot_item(slot, dtype, Combined(self.rule, shared_tensor(self.inputs.all, slot)))
        group = slot.name.group.format(expert=0)
        weights = self.weights[group]
        averaged = [i for i in self.inputs.all if i.name in weights]
        sources = tuple((i.reader, _same(i, slot)) for i in averaged)
        if len(averaged) == 1:
            return slot_item(slot, dtype, SlotCopy(*sources[0]))
        return slot_item(
            slot,
            dtype,
            Mean(group, "/".join(slot.hf_names), sources, tuple(weights[i.name] for i in averaged)),
        )


def shared_tensor(inputs: Sequence[Input], slot: Slot) -> SharedTensor:
    """A shared slot of the anchor, which is one of `inputs`, and of the other models."""
    holders = [Holder(i.name, i.reader, _same(i, slot)) for i in inputs]
    (anchor,) = (holder for holder in holders if holder.name == ANCHOR)
    return SharedTensor(anchor, tuple(holder for holder in holders if holder is not anchor))


def _same(source: Input, slot: Slot) -> Slot:
    """What corresponds to a shared slot, or to one of the anchor, in an input."""
    if source.model.num_experts is None and slot.name in DENSE_OF_EXPERT:
        return Slot(source.model, DENSE_OF_EXPERT[slot.name], slot.index[:1])
    return Slot(source.model, slot.name, slot.index)


def check_same_anchor(branch: Path, anchor: Path) -> ModelConfig:
    """The model of `branch`, after a proof that its expert 0 is `anchor`'s FFN, to the bit.

    Raises BarError if it isn't, and if the two can't be merged for another reason.
    """
    inputs = open_inputs([branch], anchor)
    (source,) = inputs.with_experts
    for slot in slots(source.model):
        if slot.name in EXPERT_FFN_NAMES and not slot.index[1]:
            _SameCopy(tuple((i.reader, _same(i, slot)) for i in inputs.all))()
    return source.model


@dataclasses.dataclass(frozen=True)
class _SameCopy:
    """Makes a slot of the first source, after a proof that all are the same."""

    sources: tuple[tuple[CheckpointReader, Slot], ...]

    def __call__(self) -> ItemContent:
        (reader, slot), *others = self.sources
        tensor = reader.read(slot)
        for other, other_slot in others:
            if not _equal(reader, slot, tensor, other, other_slot):
                raise BarError(
                    f"{other.folder} and {reader.folder} have different anchors "
                    f"({other_slot.label}); branches of one merge must start from the same anchor "
                    "and keep it frozen, or be merged with --anchor-ffn average"
                )
        return ItemContent([[tensor]], [(reader.where(slot), lambda: tensor)])


def _equal(
    reader: CheckpointReader,
    slot: Slot,
    tensor: Tensor,
    other: CheckpointReader,
    other_slot: Slot,
) -> bool:
    if reader.dtype(slot) == other.dtype(other_slot):
        digests = reader.recorded_digest(slot), other.recorded_digest(other_slot)
        if None not in digests:
            return digests[0] == digests[1]
    return same_numbers(tensor, other.read(other_slot))


@dataclasses.dataclass(frozen=True)
class _RouterRows:
    """Makes router rows `[E, H]`: the anchor's are averaged, the others stacked."""

    slot: Slot
    anchors: tuple[tuple[CheckpointReader, Slot, int], ...]
    others: tuple[tuple[CheckpointReader, Slot, int], ...]

    def __call__(self) -> ItemContent:
        anchor_rows = [reader.read(slot)[0] for reader, slot, _ in self.anchors]
        others = [reader.read(slot)[index] for reader, slot, index in self.others]
        sources = [
            (reader.where(slot), partial(reader.read, slot))
            for reader, slot, _ in (*self.anchors, *self.others)
        ]
        facts: dict[str, Any] = {}
        name = f"{self.slot.hf_names[0]}[0]"
        counts = [float(count) for _, _, count in self.anchors]
        anchor = mean_blocks([anchor_rows], counts, "router.0", name, facts)
        return ItemContent([[*anchor, *others]], sources, facts if len(anchor_rows) > 1 else {})
