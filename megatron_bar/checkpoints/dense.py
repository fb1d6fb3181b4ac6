"""One model of several dense ones of a shape: the mean of them all, or experts side by side.

`average` is a dense model: of every tensor the mean in fp32, in the models' own type; where all
agree, their bits. `stack` is Branch-Train-MiX: every model's FFN is an expert, as it is; the rest
is averaged in the same way, or one model's; router rows are fresh. In both, a rule of `merging` may
go in place of the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from megatron_bar.checkpoints.average import Mean, deviations_by_group, deviations_of
from megatron_bar.checkpoints.branch import RouterRows
from megatron_bar.checkpoints.convert import SlotCopy, tokenizer_files_of, write_checkpoint
from megatron_bar.checkpoints.dcp import CheckpointReader, slot_item
from megatron_bar.checkpoints.merge import Merged, shared_tensor
from megatron_bar.checkpoints.merge_plan import Input
from megatron_bar.checkpoints.merging import Rule
from megatron_bar.checkpoints.merging.combined import Combined
from megatron_bar.checkpoints.names import DENSE_OF_EXPERT, ROUTER_NAME, Slot, slots
from megatron_bar.checkpoints.number_types import check_one_type, ffn_type
from megatron_bar.checkpoints.plan import Item
from megatron_bar.models.config import ModelConfig, check_same_shape
from megatron_bar.recipe.names import ANCHOR
from megatron_bar.runtime.errors import BarError


def average(
    models: Mapping[str, Path],
    target: Path,
    anchor: Path | None = None,
    rule: Rule | None = None,
    processes: int | None = None,
    overwrite: bool = False,
) -> Merged:
    """Write the mean of the dense `models`, by name, each of the same weight, and of `anchor`.

    With a `rule` it is what that makes of them and the anchor, which is then needed. Tokenizer and
    the like are the first model's, with the chat format that it was trained in.

    Raises BarError unless all are dense models of one shape and stored in the same types.
    """
    assert rule is None or anchor is not None
    inputs = _open(models if anchor is None else {ANCHOR: anchor, **models})
    items = [_shared_item(inputs, slot, rule) for slot in slots(inputs[0].model)]
    facts = write_checkpoint(
        "average",
        target,
        inputs[0].model,
        items,
        [i.folder for i in inputs],
        tokenizer_files_of(next(iter(models.values()))),
        repr(rule),
        processes,
        overwrite,
    )
    return Merged(inputs[0].model, deviations_of(facts), deviations_by_group(facts))


def stack(
    anchor: Path,
    models: Mapping[str, Path],
    target: Path,
    shared: str = "published",
    seed: int = 0,
    rule: Rule | None = None,
    processes: int | None = None,
    overwrite: bool = False,
) -> Merged:
    """Write a mixture of experts: 0 is the anchor's FFN, then those of `models`, by name.

    All that is shared is the mean over all models and the anchor ("published"), over the models
    ("branches"), or that of the model called `shared`; with a `rule`, what that makes of the models
    and the anchor, in place of "published". Router rows are drawn as `branch` draws
    them; all experts are active.

    Raises BarError unless all are dense models of one shape and stored in the same types, and for a
    `shared` that none is.
    """
    inputs = _open({ANCHOR: anchor, **models})
    means = {"published": inputs, "branches": inputs[1:]}
    if shared in means:
        sources = means[shared]
    elif not (sources := [i for i in inputs if i.name == shared]):
        raise BarError(
            f"shared parameters of {shared!r}: there is no such model; there are "
            f"{', '.join(i.name for i in inputs)}"
        )
    names = tuple(i.name for i in inputs)
    model = replace(
        inputs[0].model.with_experts(len(inputs)),
        expert_names=names,
        merged_from=tuple(i.name for i in sources) if shared in means and rule is None else (),
    )
    items = [_stacked_item(inputs, sources, slot, seed, rule) for slot in slots(model)]
    facts = write_checkpoint(
        "stack",
        target,
        model,
        items,
        [i.folder for i in inputs],
        tokenizer_files_of(next(iter(models.values()))),
        [shared, seed, names, repr(rule)],
        processes,
        overwrite,
    )
    return Merged(model, deviations_of(facts), deviations_by_group(facts))


def _open(models: Mapping[str, Path]) -> list[Input]:
    inputs: list[Input] = []
    for name, folder in models.items():
        model = ModelConfig.load(folder)
        if model.num_experts is not None:
            raise BarError(f"{folder} has {model.num_experts} experts; dense models are needed")
        if inputs:
            check_same_shape(folder, model, inputs[0].folder, inputs[0].model)
        inputs.append(Input(name, Path(folder), model, CheckpointReader(folder)))
    if len(inputs) < 2:
        raise BarError("one model can't be merged; give at least two")
    check_one_type([(i.model, i.reader) for i in inputs])
    return inputs


def _stacked_item(
    inputs: list[Input], shared: list[Input], slot: Slot, seed: int, rule: Rule | None
) -> Item:
    if slot.name is ROUTER_NAME:
        dtype = ffn_type(inputs[0].reader, inputs[0].model)
        return slot_item(slot, dtype, RouterRows(slot, seed))
    if slot.name in DENSE_OF_EXPERT:
        layer, expert = slot.index
        source = inputs[expert]
        return _copy(source, slot, Slot(source.model, DENSE_OF_EXPERT[slot.name], (layer,)))
    if len(shared) == 1:
        return _copy(shared[0], slot, Slot(shared[0].model, slot.name, slot.index))
    return _shared_item(shared, slot, rule)


def _copy(source: Input, target: Slot, slot: Slot) -> Item:
    return slot_item(target, source.reader.dtype(slot), SlotCopy(source.reader, slot))


def _shared_item(inputs: list[Input], slot: Slot, rule: Rule | None) -> Item:
    """The mean of what the dense models hold in a slot of this name, or what `rule` makes of it."""
    if rule is not None:
        dtype = inputs[0].reader.dtype(Slot(inputs[0].model, slot.name, slot.index))
        return slot_item(slot, dtype, Combined(rule, shared_tensor(inputs, slot)))
    sources = tuple((i.reader, Slot(i.model, slot.name, slot.index)) for i in inputs)
    return slot_item(
        slot,
        inputs[0].reader.dtype(sources[0][1]),
        Mean(slot.name.group, "/".join(slot.hf_names), sources, (1.0,) * len(sources)),
    )
