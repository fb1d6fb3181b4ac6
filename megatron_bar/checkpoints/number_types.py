"""The law of number types: what a checkpoint stores, a stage computes in and a stage writes.

1. A checkpoint stores one type for each name of the table (`names.py`), over all layers and
   experts. An import keeps what the Hugging Face folder has; norms or routers may be wider than the
   rest.
2. The anchor decides. A branch has the anchor's types, its router rows that of the FFNs, as
   published FlexOlmo models have. Where the pretrained model is stored in another type, the domain
   expert starts from its FFN cast to the anchor's; the anchor itself is copied.
3. A stage computes in one type, `dtype` of the recipe, or else the one that its start is stored in.
   In bfloat16 the weights that train have fp32 main weights beside them, which resume points keep.
4. A stage writes every tensor in the type that its start stores it in. Frozen tensors have the bits
   of the start: where computing rounds them they are taken from its files.
5. What is merged is of one type; models of unlike types are refused, not cast.

docs/number-types.md tells it to users.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.checkpoints.names import DENSE_FFN_NAMES, Slot, slots
from megatron_bar.checkpoints.resume_point import open_checkpoint
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.errors import BarError

# By the key of a checkpoint, the type that it is stored in.
StoredTypes = dict[str, torch.dtype]


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
    """What a stage computes in that doesn't say, from weights of type `stored`."""
    return stored if stored is torch.bfloat16 else torch.float32


def _of_most(folder: Path) -> torch.dtype:
    """The type of the matrices, which are nearly all of a model; norms may be wider."""
    attention = (slot for slot in slots(ModelConfig.load(folder)) if slot.name.group == "attention")
    return open_checkpoint(folder).dtype(next(attention))


def router_type(dense: CheckpointReader, model: ModelConfig) -> torch.dtype:
    """The type of fresh router rows beside the FFNs of the dense `model`."""
    return dense.dtype(Slot(model, DENSE_FFN_NAMES[0], (0,)))


def check_one_type(models: Iterable[tuple[ModelConfig, CheckpointReader]]) -> None:
    """Raise BarError unless all store what they have in common in the same types.

    An expert's FFN is the same thing as that of a dense model.
    """
    known: dict[str, tuple[torch.dtype, Path]] = {}
    for model, reader in models:
        for slot in slots(model):
            name = slot.name.megatron.replace(".experts.experts.", ".")
            dtype = reader.dtype(slot)
            first, where = known.setdefault(name, (dtype, reader.folder))
            if dtype != first:
                raise BarError(
                    f"{reader.folder} stores {slot.key} in {type_name(dtype)} and {where} in "
                    f"{type_name(first)}; models that are merged have one type, so convert one: "
                    f"megatron-bar export CKPT HF_DIR --dtype {type_name(first)}, then import it"
                )
