"""`verify`: a folder against its manifest, and a checkpoint against a Hugging Face folder.

A checkpoint that training wrote has no manifest. Of such a one it is proven that every tensor can
be read, has the model's shape and is finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import torch

from megatron_bar.checkpoints import hf
from megatron_bar.checkpoints.hf_weights import HfReader
from megatron_bar.checkpoints.manifest import FILE_NAME, Manifest
from megatron_bar.checkpoints.mapped import is_finite, same_numbers
from megatron_bar.checkpoints.names import slots
from megatron_bar.checkpoints.resume_point import open_checkpoint
from megatron_bar.models.config import FILE_NAME as MODEL_FILE
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.console import progress
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import file_digest

# Of the texts that are compared; where that is within a sliding window, a longer one is added.
TEXT_TOKENS = 64
# Both models in fp32 must fit into this share of the memory that is free.
MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class _Tensor:
    name: str
    where: str
    read: Callable[[], torch.Tensor]


def verify_folder(folder: Path) -> str:
    """Read every tensor of a checkpoint or a Hugging Face folder; returns a line on what is proven.

    Raises BarError, with the number of damaged tensors and the first of them, if any differs from
    the manifest, is missing from it or isn't finite, or if a small file differs.
    """
    folder = Path(folder)
    tensors = list(_tensors(folder))
    manifest = Manifest.of(folder)
    names = {tensor.name for tensor in tensors}
    faults = []
    if manifest is not None:
        faults += [
            f"{folder}: {FILE_NAME} doesn't know tensor {name}"
            for name in sorted(names - set(manifest.tensors))
        ]
        faults += [
            f"{folder}: tensor {name} of {FILE_NAME} is missing"
            for name in sorted(set(manifest.tensors) - names)
        ]
        faults += [
            f"{folder / name} is not what {FILE_NAME} says"
            for name, digest in manifest.files.items()
            if not (folder / name).is_file() or file_digest(folder / name) != digest
        ]
    with progress("verify", len(tensors)) as advance:
        for tensor in tensors:
            try:
                if not is_finite(tensor.read().contiguous()):
                    faults.append(f"{tensor.where} holds NaN or Inf")
            except BarError as error:
                faults.append(str(error))
            advance()
    if faults:
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise BarError(f"{faults[0]}{more}")
    if manifest is None:
        return (
            f"{folder}: {len(tensors)} tensors can be read, have the model's shapes and are "
            f"finite; their bits aren't proven: there is no {FILE_NAME} (training writes none)"
        )
    return (
        f"{folder}: {len(tensors)} tensors and {len(manifest.files)} other files are what "
        f"{FILE_NAME} says"
    )


def _tensors(folder: Path) -> Iterator[_Tensor]:
    if (folder / MODEL_FILE).is_file():
        reader = open_checkpoint(folder)
        for slot in slots(ModelConfig.load(folder)):
            yield _Tensor(slot.label, reader.where(slot), partial(reader.read, slot))
    else:
        model = hf.model_config_from_hf(folder)
        hf_reader = HfReader(folder)
        for slot in slots(model):
            for name, shape in zip(slot.hf_names, slot.hf_shapes):
                hf_reader.check(name, shape)
                yield _Tensor(name, hf_reader.where(name), partial(hf_reader.read, name))


def fits_in_memory(model: ModelConfig, gradients: bool) -> bool:
    """Can our model and transformers' stand side by side in fp32, with gradients if wanted?"""
    numbers = sum(torch.Size(shape).numel() for slot in slots(model) for shape in slot.hf_shapes)
    copies = 5 if gradients else 2  # ours are stacked by key to be compared
    return 4 * numbers * copies < MEMORY_SHARE * psutil.virtual_memory().available


def fits_past_window(model: ModelConfig) -> bool:
    """Is there memory, besides both models, to compute a text longer than the sliding window?"""
    length = past_window(model)
    layers = 3 * model.num_layers * model.hidden_size  # kept of each model, to be compared
    scores = model.num_heads * length  # of one layer: raw, masked, normed
    numbers = length * (2 * layers + 3 * scores + 3 * model.vocab_size)
    return 4 * numbers < MEMORY_SHARE * psutil.virtual_memory().available


def past_window(model: ModelConfig) -> int:
    """Tokens of a text whose end doesn't see its beginning in a sliding layer."""
    assert model.window is not None
    return min(model.window.size + TEXT_TOKENS, model.max_position_embeddings)


def check_same_model(checkpoint: Path, hf_folder: Path) -> ModelConfig:
    """Raises BarError if they are models of different shape."""
    model = ModelConfig.load(checkpoint)
    for key, value in vars(hf.model_config_from_hf(hf_folder)).items():
        if key not in ("expert_names", "merged_from") and getattr(model, key) != value:
            raise BarError(f"{hf_folder} has {key} {value}, {checkpoint} has {getattr(model, key)}")
    return model


def verify_tensors(checkpoint: Path, hf_folder: Path) -> int:
    """Compare all tensors, one by one; returns their number.

    Where dtypes differ, numbers must be equal in the wider of the two.

    Raises BarError, with the number of tensors that differ and the first of them.
    """
    model = check_same_model(checkpoint, hf_folder)
    ours, theirs = open_checkpoint(checkpoint), HfReader(hf_folder)
    all_slots = list(slots(model))
    differ: list[str] = []
    compared = 0
    with progress("verify", len(all_slots)) as advance:
        for slot in all_slots:
            parts = zip(slot.hf_names, slot.hf_shapes, slot.to_hf(ours.read(slot)))
            for name, shape, tensor in parts:
                theirs.check(name, shape)
                if not same_numbers(tensor, theirs.read(name)):
                    differ.append(theirs.where(name))
                compared += 1
            advance()
    if differ:
        raise BarError(
            f"{checkpoint} and {hf_folder} differ in {len(differ)} of {compared} "
            f"tensors: first {differ[0]}"
        )
    return compared
