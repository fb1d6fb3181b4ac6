"""`merge`: branches become one model, with the anchor and every domain expert."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_bar.checkpoints.convert import companions_of, write_converted
from megatron_bar.checkpoints.dcp import CheckpointReader, LazySlice
from megatron_bar.checkpoints.names import (
    EXPERT_FFN_NAMES,
    ROUTER_NAME,
    SHARED_NAMES,
    Name,
    Slot,
    slots,
)
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.errors import BarError


@dataclasses.dataclass(frozen=True)
class _Branch:
    folder: Path
    model: ModelConfig
    reader: CheckpointReader

    def read(self, name: Name, index: tuple[int, ...]) -> torch.Tensor:
        return self.reader.read(Slot(self.model, name, index))


@dataclasses.dataclass(frozen=True)
class Deviation:
    """How far one shared tensor of the branches lies from the mean, as relative norms."""

    tensor: str
    largest: float
    mean: float


def merge(
    branches: Sequence[Path],
    target: Path,
    anchor: Path | None = None,
    overwrite: bool = False,
) -> tuple[ModelConfig, list[Deviation]]:
    """Write the merged model: the anchor, then each branch's domain expert in the order given.

    Shared tensors are the plain mean, taken in fp32, over the branches and, where given, the
    untouched `anchor` (a dense checkpoint), as the published merge does. Expert FFNs and router
    rows are copied. All experts are active. Returns the model and the deviations by tensor.

    Raises BarError unless all are 2-expert branches of one shape with the same anchor, to the bit.
    """
    opened = [_open(folder) for folder in branches]
    if not opened:
        raise BarError("merge needs at least one branch")
    first = opened[0]
    for other in opened[1:]:
        _check_same_anchor(first, other)
    sources = list(opened)
    if anchor is not None:
        dense = ModelConfig.load(anchor)
        if _shape(dense) != _shape(first.model):
            raise BarError(f"{anchor} and {first.folder} are models of different shape")
        sources.append(_Branch(Path(anchor), dense, CheckpointReader(anchor)))
    names = ["anchor", *(branch.model.all_expert_names[1] for branch in opened)]
    if len(set(names)) < len(names):
        names = ["anchor", *(f"expert{i}" for i in range(1, len(names)))]
    model = dataclasses.replace(
        first.model.with_experts(len(opened) + 1), expert_names=tuple(names)
    )
    deviations: list[Deviation] = []
    slices = [_slice(slot, opened, sources, deviations) for slot in slots(model)]
    companions = companions_of(first.folder)
    write_converted(target, model, slices, companions, "merge", overwrite)
    return model, deviations


def _open(folder: Path) -> _Branch:
    model = ModelConfig.load(folder)
    if model.num_experts != 2:
        experts = "a dense model" if model.num_experts is None else f"{model.num_experts} experts"
        raise BarError(f"{folder} is {experts}, not a branch (anchor and one domain expert)")
    return _Branch(Path(folder), model, CheckpointReader(folder))


def _shape(model: ModelConfig) -> ModelConfig:
    return dataclasses.replace(
        model, num_experts=None, experts_per_token=None, expert_names=None
    )


def _check_same_anchor(first: _Branch, other: _Branch) -> None:
    if _shape(first.model) != _shape(other.model):
        raise BarError(f"{other.folder} and {first.folder} are models of different shape")
    for layer in range(first.model.num_layers):
        ours = [first.read(name, (layer, 0)) for name in EXPERT_FFN_NAMES]
        theirs = [other.read(name, (layer, 0)) for name in EXPERT_FFN_NAMES]
        ours.append(first.read(ROUTER_NAME, (layer,))[0])
        theirs.append(other.read(ROUTER_NAME, (layer,))[0])
        if not all(torch.equal(a, b) for a, b in zip(ours, theirs)):
            raise BarError(
                f"{other.folder} and {first.folder} have different anchors (layer {layer}); "
                "branches of one merge must start from the same anchor and router seed"
            )


def _slice(
    slot: Slot, branches: list[_Branch], sources: list[_Branch], deviations: list[Deviation]
) -> LazySlice:
    in_a_branch = (slot.index[0], 0) if slot.name in EXPERT_FFN_NAMES else slot.index
    dtype = branches[0].reader.dtype(Slot(branches[0].model, slot.name, in_a_branch))
    if slot.name in SHARED_NAMES:
        return LazySlice(slot, dtype, lambda: _mean(slot, sources, deviations).to(dtype))
    if slot.name is ROUTER_NAME:
        return LazySlice(slot, dtype, lambda: _stacked_rows(slot, branches))
    layer, expert = slot.index
    branch = branches[max(expert - 1, 0)]
    return LazySlice(slot, dtype, lambda: branch.read(slot.name, (layer, min(expert, 1))))


def _mean(slot: Slot, sources: list[_Branch], deviations: list[Deviation]) -> torch.Tensor:
    tensors = [source.read(slot.name, slot.index).float() for source in sources]
    if all(torch.equal(tensor, tensors[0]) for tensor in tensors[1:]):
        mean = tensors[0]  # a sum and a division would not give the same bits back
    else:
        mean = torch.stack(tensors).mean(0)
    norm = mean.norm().clamp_min(1e-30)
    distances = [((tensor - mean).norm() / norm).item() for tensor in tensors]
    name = "/".join(slot.hf_names)
    deviations.append(Deviation(name, max(distances), sum(distances) / len(distances)))
    return mean


def _stacked_rows(slot: Slot, branches: list[_Branch]) -> torch.Tensor:
    rows = [branch.read(ROUTER_NAME, slot.index) for branch in branches]
    return torch.stack([rows[0][0], *(rows_2H[1] for rows_2H in rows)])
