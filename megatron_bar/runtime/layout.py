"""How a model is laid out over processes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from megatron_bar.runtime.errors import BarError


@dataclass
class Layout:
    """Sizes of the parallel dimensions, named as in Megatron-Core.

    `data` is what remains: processes / (tensor * pipeline). Experts are spread over `expert` ranks,
    taken from the data-parallel ones, and each is sharded over as many ranks as `tensor` says.
    Sequence parallelism is on wherever `tensor` > 1.
    """

    processes: int = 1
    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    expert_tensor: int | None = None

    def check(self) -> None:
        """Raise BarError where the sizes don't fit each other."""
        for name in ("processes", "tensor", "pipeline", "expert"):
            if getattr(self, name) < 1:
                raise BarError(f"layout.{name} is {getattr(self, name)}; it must be 1 or more")
        if self.processes % (self.tensor * self.pipeline):
            raise BarError(
                f"layout: {self.processes} processes can't be split over tensor {self.tensor} x "
                f"pipeline {self.pipeline}; make processes a multiple of "
                f"{self.tensor * self.pipeline}"
            )
        expert_ways = self.expert * self.resolved_expert_tensor * self.pipeline
        if self.processes % expert_ways:
            raise BarError(
                f"layout: {self.processes} processes can't be split over expert {self.expert} x "
                f"expert_tensor {self.resolved_expert_tensor} x pipeline {self.pipeline}; "
                f"make processes a multiple of {expert_ways}"
            )
        if self.expert == 1 and self.resolved_expert_tensor != self.tensor:
            # Megatron-Core keeps experts in the dense gradient buffers when expert parallelism is
            # off, so their gradients are reduced over the wrong group (seen in 0.16.1).
            raise BarError(
                f"layout: expert 1 with expert_tensor {self.resolved_expert_tensor} and tensor "
                f"{self.tensor} gives wrong expert gradients in Megatron-Core; leave "
                "expert_tensor out, or use expert parallelism"
            )

    @property
    def resolved_expert_tensor(self) -> int:
        return self.tensor if self.expert_tensor is None else self.expert_tensor

    @property
    def data(self) -> int:
        return self.processes // (self.tensor * self.pipeline)

    def fitted(self, num_experts: int | None) -> Layout:
        """This layout for a model of so many experts (None: dense), of as many processes.

        Where `expert` doesn't divide the experts they are spread over fewer ranks.
        """
        expert = math.gcd(self.expert, num_experts or 1)
        if expert == self.expert:
            return self
        return dataclasses.replace(
            self, expert=expert, expert_tensor=None if expert == 1 else self.expert_tensor
        )

    def __str__(self) -> str:
        sizes = {"tp": self.tensor, "pp": self.pipeline, "ep": self.expert, "dp": self.data}
        return " ".join(f"{name}{size}" for name, size in sizes.items())
