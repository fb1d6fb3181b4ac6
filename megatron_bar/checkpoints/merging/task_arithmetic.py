"""Task arithmetic (arXiv 2212.04089): the anchor and a share of the sum of all changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from megatron_bar.checkpoints.merging.sources import SharedTensor


@dataclass(frozen=True)
class TaskArithmetic:
    """anchor + scale * sum of changes.

    A change that one branch alone made is there as a whole at scale 1, which the mean over n models
    divides by n. Changes that several branches made add up: common ones are counted several times.
    """

    PASSES: ClassVar[int] = 1

    scale: float

    def __call__(self, tensor: SharedTensor) -> Iterator[torch.Tensor]:
        for anchor, changes in tensor.changes():
            yield anchor + self.scale * changes.sum(0)
