"""The law of number types: what a checkpoint stores, a stage computes in and a stage writes.

1. A checkpoint stores one type for each name of the table (`names.py`), over all layers and
   experts. An import keeps what the Hugging Face folder has; norms or routers may be wider than the
   rest. A folder whose layers are of unlike types is refused, not cast.
2. The anchor decides. A branch has the anchor's types, its router rows that of the FFNs, as
   published FlexOlmo models have. Where the pretrained model is stored in another type, the domain
   expert starts from its FFN cast to the anchor's; the anchor itself is copied.
3. A stage computes in one type, `dtype` of the recipe, or else the one that its start is stored in.
   In bfloat16 the weights that train have fp32 main weights beside them, which resume points keep.
4. A stage writes every tensor in the type that its start stores it in. Frozen tensors have the bits
   of the start: where computing rounds them they are taken from its files.
5. What is merged is stored in the same types; models of unlike types are refused, not cast.

docs/number-types.md tells it to users.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.checkpoints.hf import architecture
from megatron_bar.checkpoints.names import DENSE_FFN_NAMES, EXPERT_FFN_NAMES, Slot, slots
from megatron_bar.checkpoints.resume_point import open_checkpoint
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.errors import BarError

# By the key of a checkpoint, the type that it is stored in.
StoredTypes = dict[str, torch.dtype]

_NARROW_FIRST = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def type_name(dtype: torch.dtype) -> str:
    """The type as recipes and config.json spell it."""
    return str(dtype).removeprefix("torch.")


def holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether every number of type `narrow` is one of type `wide`, to the bit."""
    return torch.promote_types(wide, narrow) == wide


def stored_types(folder: Path) -> StoredTypes:
    """The types of a whole checkpoint. No tensor is read.

    Raises BarError if a tensor of the model is missing or has another shape.
    """
    reader = open_checkpoint(folder)
    return {slot.key: reader.dtype(slot) for slot in slots(ModelConfig.load(folder))}


def compute_type(asked: str | None, start: Path | None) -> torch.dtype:
    """The type that a stage computes in, by the recipe's `dtype` or by what it starts from.

    A checkpoint in a type that no stage computes in, such as float16, is computed in float32, which
    holds its numbers. Without a start it is float32.
    """
    if asked is not None:
        return getattr(torch, asked)
    return torch.float32 if start is None else default_compute_type(_of_most(start))


def default_compute_type(stored: torch.dtype) -> torch.dtype:
    """The type that a stage computes in by default, from weights of type `stored`."""
    return stored if stored is torch.bfloat16 else torch.float32


def _of_most(folder: Path) -> torch.dtype:
    """The type of the matrices, which are nearly all of a model; norms may be wider."""
    attention = (slot for slot in slots(ModelConfig.load(folder)) if slot.name.group == "attention")
    return open_checkpoint(folder).dtype(next(attention))


def ffn_type(dense: CheckpointReader, model: ModelConfig) -> torch.dtype:
    """The type of the FFNs of the dense `model`, and of fresh router rows beside them."""
    return dense.dtype(Slot(model, DENSE_FFN_NAMES[0], (0,)))


def check_layers_alike(folder: Path, model: ModelConfig, types: Mapping[str, torch.dtype]) -> None:
    """Raise BarError unless what a Hugging Face folder has for one key is all of one type.

    `types` are those of its tensors, by name.
    """
    firsts: dict[str, str] = {}
    for slot in slots(model):
        first = firsts.setdefault(slot.key, slot.hf_names[0])
        for name in slot.hf_names:
            if types[name] != types[first]:
                ((most, _),) = Counter(types.values()).most_common(1)
                raise BarError(
                    f"{folder} stores {name} in {type_name(types[name])} and {first} in "
                    f"{type_name(types[first])}; a checkpoint has one type for both, so cast the "
                    f"model: megatron-bar import {folder} CKPT --dtype {type_name(most)}; a recipe "
                    "names a folder, which megatron-bar export CKPT HF_DIR makes of that"
                )


def check_one_type(models: Sequence[tuple[ModelConfig, CheckpointReader]]) -> None:
    """Raise BarError, which says what to cast, unless all store what they share in the same types.

    An expert's FFN is the same thing as that of a dense model.
    """
    known: dict[str, tuple[torch.dtype, Path]] = {}
    for model, reader in models:
        for slot in slots(model):
            name = slot.key.replace(".experts.experts.", ".")
            dtype = reader.dtype(slot)
            first, where = known.setdefault(name, (dtype, reader.folder))
            if dtype != first:
                raise BarError(
                    f"{reader.folder} stores {slot.key} in {type_name(dtype)} and {where} in "
                    f"{type_name(first)}; models that are merged have one type, so "
                    f"{_how_to_have_one_type(models)}"
                )


def _how_to_have_one_type(models: Sequence[tuple[ModelConfig, CheckpointReader]]) -> str:
    """Which models to cast, and how, or to make anew, so that all are of one type throughout.

    It is the narrowest that one has its FFNs in: cast to it, copies of one anchor that are stored
    in several types are the same again, as a merge wants them.
    """
    types = {
        reader.folder: {slot.name: reader.dtype(slot) for slot in slots(model)}
        for model, reader in models
    }
    ffns = DENSE_FFN_NAMES + EXPERT_FFN_NAMES
    target = min(
        (dtype for of_model in types.values() for name, dtype in of_model.items() if name in ffns),
        key=_NARROW_FIRST.index,
    )
    folders = [
        str(folder) for folder, of_model in types.items() if set(of_model.values()) != {target}
    ]
    each, them = ("each of ", "them") if folders[1:] else ("", "it")
    named = f"{each}{', '.join(folders)}"
    model, _ = models[0]  # all are alike but for what their experts are called
    try:
        architecture(model)
    except BarError:
        return (
            f"make {named} anew from an anchor in {type_name(target)}, which megatron-bar "
            f"import HF_DIR CKPT --dtype {type_name(target)} makes; there is no Hugging Face "
            f"class to export {them} in and cast"
        )
    return (
        f"cast {named}: megatron-bar export CKPT HF_DIR --dtype {type_name(target)}, then "
        f"import {them}"
    )
