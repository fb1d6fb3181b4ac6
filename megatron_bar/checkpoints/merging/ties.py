"""TIES (arXiv 2306.01708): trim small changes, elect a sign, take the mean of those that agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from megatron_bar.checkpoints.merging.sources import SharedTensor

_LOW_BITS = 16


@dataclass(frozen=True)
class Ties:
    """anchor + scale * mean of the changes that were kept and have the elected sign.

    Of each branch's change of a tensor the largest `density` of all numbers is kept, and whatever
    is as large as the last of them. A number's elected sign is that of the sum of what was kept,
    + where that is 0. A tensor is one as Megatron-Core stores it: query, key and value are trimmed
    together, as are gate and up.
    """

    PASSES: ClassVar[int] = 3

    density: float
    scale: float

    def __call__(self, tensor: SharedTensor) -> Iterator[torch.Tensor]:
        least_N = least_kept(tensor, self.density)
        for anchor, changes in tensor.changes():
            least = least_N.view(-1, *[1] * anchor.dim())
            yield anchor + self.scale * disjoint_mean(changes.where(changes.abs() >= least, 0.0))


def disjoint_mean(changes_N: torch.Tensor) -> torch.Tensor:
    """The mean over branches of changes `[N, ...]` that have the sign of their sum; 0 is none."""
    elected = torch.where(changes_N.sum(0) >= 0, 1.0, -1.0)
    agreeing = changes_N.sign() == elected
    return changes_N.mul(agreeing).sum(0) / agreeing.sum(0).clamp_min(1)


def least_kept(tensor: SharedTensor, density: float) -> torch.Tensor:
    """The smallest absolute change `[N]` of each branch that trimming to `density` keeps.

    It is found to the bit, in two passes and constant memory: absolute values are ordered as the
    bits of their floats are, so that the upper bits are counted first, then the lower ones of those
    whose upper bits are the bound's.
    """
    rank = max(1, int(density * tensor.numel))
    upper_N, rank_N = _bound(
        _counts(tensor, lambda bits_N: bits_N >> _LOW_BITS), [rank] * len(tensor.branches)
    )

    def lower(bits_N: torch.Tensor) -> torch.Tensor:
        inside = bits_N >> _LOW_BITS == upper_N.view(-1, *[1] * (bits_N.dim() - 1))
        return torch.where(inside, bits_N & (1 << _LOW_BITS) - 1, -1)

    lower_N, _ = _bound(_counts(tensor, lower), rank_N)
    return ((upper_N << _LOW_BITS) + lower_N).int().view(torch.float32)


def _counts(tensor: SharedTensor, digit: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Numbers of each branch's change `[N, 2 ** 16]` by a digit of their bits; -1 isn't counted."""
    bins = 1 << _LOW_BITS
    counts = torch.zeros(len(tensor.branches), bins, dtype=torch.long)
    for _, changes in tensor.changes():
        bits_N = changes.abs_().view(torch.int32)
        for row, digits in zip(counts, digit(bits_N)):
            row += torch.bincount(digits.reshape(-1) + 1, minlength=bins + 1)[1:]
    return counts


def _bound(counts: torch.Tensor, rank_N: list[int]) -> tuple[torch.Tensor, list[int]]:
    """The digit of the number of rank `rank_N` from the largest, and its rank within that digit."""
    digits, ranks = [], []
    for row, rank in zip(counts, rank_N):
        from_above = row.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_above, rank))
        digits.append(len(row) - 1 - place)
        ranks.append(rank - (int(from_above[place - 1]) if place else 0))
    return torch.tensor(digits), ranks
