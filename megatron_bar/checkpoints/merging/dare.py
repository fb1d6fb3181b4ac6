"""DARE (arXiv 2311.03099): drop changes at random and rescale the rest; then sum them, or TIES."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import xxhash

from megatron_bar.checkpoints.merging.sources import SharedTensor
from megatron_bar.checkpoints.merging.ties import disjoint_mean


@dataclass(frozen=True)
class Dare:
    """anchor + scale * the sum of what was kept (`dare_linear`), or its disjoint mean (`elects`).

    A number of a branch's change is kept with probability `density` and divided by it, so that the
    expected change is the branch's. What is drawn depends on the seed, the branch's name and the
    tensor alone.
    """

    PASSES: ClassVar[int] = 1

    density: float
    scale: float
    seed: int
    elects: bool

    def __call__(self, tensor: SharedTensor) -> Iterator[torch.Tensor]:
        generators = [self._generator(branch.name, tensor.label) for branch in tensor.branches]
        for anchor, changes in tensor.changes():
            drawn = torch.stack([torch.rand(anchor.shape, generator=g) for g in generators])
            kept = changes.where(drawn < self.density, 0.0).div_(self.density)
            yield anchor + self.scale * (disjoint_mean(kept) if self.elects else kept.sum(0))

    def _generator(self, branch: str, label: str) -> torch.Generator:
        seed = xxhash.xxh3_64_intdigest(f"{self.seed} {branch} {label}".encode())
        return torch.Generator().manual_seed(seed >> 1)  # which takes 63 bits
