"""Means of tensors in fp32, block by block, and how far the models lie from them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.table import Table

from megatron_bar.checkpoints.dcp import CheckpointReader
from megatron_bar.checkpoints.names import Slot
from megatron_bar.checkpoints.plan import ItemContent

_BLOCK = 2**16  # numbers; in fp32, one of each of a few models stays in a core's cache
_BAND = 2**20  # numbers that are read at a time


@dataclass(frozen=True)
class Mean:
    """Makes a slot: the mean of `sources`, each counted `weights` times.

    Where all sources agree the result has their bits, which a sum and a division in fp32 would not
    always give back. Reports a Deviation.
    """

    group: str
    tensor: str
    sources: tuple[tuple[CheckpointReader, Slot], ...]
    weights: tuple[float, ...]

    def __call__(self) -> ItemContent:
        bands = zip(*(reader.bands(slot, _BAND) for reader, slot in self.sources), strict=True)
        facts: dict[str, Any] = {}
        blocks = mean_blocks(bands, self.weights, self.group, self.tensor, facts)
        return ItemContent(
            [blocks],
            [(reader.where(slot), partial(reader.read, slot)) for reader, slot in self.sources],
            facts,
        )


def mean_blocks(
    bands: Iterable[Sequence[torch.Tensor]],
    weights: Sequence[float],
    group: str,
    name: str,
    facts: dict[str, Any],
) -> Iterator[torch.Tensor]:
    """Yield the weighted mean, flat, in blocks; at the end `facts` are those of a Deviation.

    `bands` are the models' tensors from the first rows to the last, each as one tensor a model.
    """
    total = math.fsum(weights)
    sums = Sums(len(weights))
    flat = (zip(*(tensor.reshape(-1).split(_BLOCK) for tensor in band)) for band in bands)
    for blocks in itertools.chain.from_iterable(flat):
        first = blocks[0]
        if all(b.dtype == first.dtype and torch.equal(b, first) for b in blocks[1:]):
            sums.add_equal(first.float())
            yield first
            continue
        floats = [block.float() for block in blocks]
        mean = floats[0] * weights[0]
        for block, weight in zip(floats[1:], weights[1:]):
            mean.add_(block, alpha=weight)
        mean.div_(total)
        # Where all agree the mean may still be off by fp32's last bit, which no 16 bits show.
        if any(block.dtype.itemsize > 2 for block in blocks):
            same = torch.ones_like(mean, dtype=torch.bool)
            for block in floats[1:]:
                same &= block == floats[0]
            mean = torch.where(same, floats[0], mean)
        sums.add(floats, mean)
        yield mean
    facts.update(group=group, tensor=name, **vars(sums))


class Sums:
    """Sums over blocks that a Deviation is made of; one entry a model."""

    def __init__(self, models: int) -> None:
        self.numel = 0
        self.mean_squares = 0.0
        self.squares = [0.0] * models
        self.absolute = [0.0] * models
        self.max = 0.0

    def add_equal(self, mean: torch.Tensor) -> None:
        self.numel += mean.numel()
        self.mean_squares += _squares(mean)

    def add(self, floats: Sequence[torch.Tensor], mean: torch.Tensor) -> None:
        self.numel += mean.numel()
        self.mean_squares += _squares(mean)
        for model, block in enumerate(floats):
            distance = (block - mean).abs_()
            self.squares[model] += _squares(distance)
            self.absolute[model] += distance.sum().item()
            self.max = max(self.max, distance.max().item())


def _squares(flat: torch.Tensor) -> float:
    return torch.dot(flat, flat).item()


@dataclass(frozen=True)
class Deviation:
    """Distances of the models from their mean, in one tensor or one group of tensors.

    `largest` and `mean` are distances relative to the norm of the mean: that of the farthest model,
    and their mean over the models. `max_absolute` and `mean_absolute` are over single numbers.
    """

    tensor: str
    group: str
    largest: float
    mean: float
    max_absolute: float
    mean_absolute: float


def deviations_of(facts: Iterable[dict[str, Any]]) -> list[Deviation]:
    """One for each averaged tensor."""
    return [_deviation([fact], fact["tensor"]) for fact in facts]


def deviations_by_group(facts: Iterable[dict[str, Any]]) -> list[Deviation]:
    """One for each group; its `tensor` is the one that moved farthest."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for fact in facts:
        groups.setdefault(fact["group"], []).append(fact)
    return [
        _deviation(group, max(deviations_of(group), key=lambda d: d.largest).tensor)
        for group in groups.values()
    ]


def deviation_table(groups: Iterable[Deviation]) -> Table:
    """A table, for people, of what averaging throws away."""
    table = Table(
        "group",
        "max",
        "mean",
        "farthest model",
        "models' mean",
        "most in",
        title="Distance from the mean",
        title_justify="left",
        box=None,
    )
    for d in groups:
        table.add_row(
            d.group,
            f"{d.max_absolute:.2e}",
            f"{d.mean_absolute:.2e}",
            f"{d.largest:.2%}",
            f"{d.mean:.2%}",
            d.tensor,
        )
    return table


def _deviation(facts: Sequence[dict[str, Any]], tensor: str) -> Deviation:
    norm = math.sqrt(sum(fact["mean_squares"] for fact in facts)) or 1.0
    models = range(len(facts[0]["squares"]))
    distances = [math.sqrt(sum(fact["squares"][m] for fact in facts)) / norm for m in models]
    absolute = sum(sum(fact["absolute"]) for fact in facts)
    return Deviation(
        tensor,
        facts[0]["group"],
        max(distances),
        sum(distances) / len(distances),
        max(fact["max"] for fact in facts),
        absolute / (sum(fact["numel"] for fact in facts) * len(distances)),
    )
