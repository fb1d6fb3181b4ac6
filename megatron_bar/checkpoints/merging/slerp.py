"""Spherical interpolation between the tensors of two branches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from megatron_bar.checkpoints.merging.sources import SharedTensor
from megatron_bar.runtime.errors import BarError

_PARALLEL = 0.9995  # cosine above which the arc is as good as its chord, as mergekit has it
_TINY = 1e-8


@dataclass(frozen=True)
class Slerp:
    """The point at the share `t` of the arc from the first branch's tensor to the second's.

    A tensor is one long vector. The anchor takes no part. Tensors that point the same way, or the
    opposite one, are interpolated along the straight line.

    Raises BarError unless there are two branches.
    """

    PASSES: ClassVar[int] = 2

    t: float

    def __call__(self, tensor: SharedTensor) -> Iterator[torch.Tensor]:
        if len(tensor.branches) != 2:
            raise BarError(
                f"slerp takes two branches, and there are {len(tensor.branches)}; merge "
                "two, or by another rule"
            )
        first, second = self._weights(self._cosine(tensor))
        for _, branches in tensor.bands():
            yield first * branches[0] + second * branches[1]

    def _cosine(self, tensor: SharedTensor) -> float:
        products = torch.zeros(3, dtype=torch.double)
        for _, branches in tensor.bands():
            a, b = branches.double().reshape(2, -1)
            products += torch.stack([a @ a, b @ b, a @ b])
        norms = [norm if norm > _TINY else 1.0 for norm in products[:2].sqrt().tolist()]
        return max(-1.0, min(1.0, products[2].item() / math.prod(norms)))

    def _weights(self, cosine: float) -> tuple[float, float]:
        if abs(cosine) > _PARALLEL:
            return 1 - self.t, self.t
        angle = math.acos(cosine)
        first, second = (math.sin(share * angle) for share in (1 - self.t, self.t))
        return first / math.sin(angle), second / math.sin(angle)
