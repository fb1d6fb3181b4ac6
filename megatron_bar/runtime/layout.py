"""Parallel layout of a model over processes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from megatron_bar.runtime.errors import BarError


@dataclass
class Layout:
    """Sizes of the parallel dimensions, named as in Megatron-Core.

    `data` is what remains: processes / (tensor * context * pipeline). Experts are spread over
    `expert` ranks, taken from the data- and context-parallel ones, and each is sharded over as many
    ranks as `tensor` says. Sequence parallelism is on wherever `tensor` > 1. `context` ranks share
    the positions of each row, in stages that train on rows.
    """

    processes: int = 1  # in all: GPUs on a cluster
    tensor: int = 1  # ranks that share each matrix
    pipeline: int = 1  # ranks that share the layers
    expert: int = 1  # ranks that share the experts
    expert_tensor: int | None = None  # ranks that share an expert's matrices; as tensor by default
    context: int = 1  # ranks that share the positions of each row

    def check(self) -> None:
        """Raise BarError where the sizes don't fit each other."""
        for name in ("processes", "tensor", "context", "pipeline", "expert"):
            if getattr(self, name) < 1:
                raise BarError(f"layout.{name} is {getattr(self, name)}; it must be 1 or more")
        ways = self.tensor * self.context * self.pipeline
        if self.processes % ways:
            context = f"context {self.context} x " if self.context > 1 else ""
            raise BarError(
                f"layout: {self.processes} processes can't be split over tensor {self.tensor} x "
                f"{context}pipeline {self.pipeline}; make processes a multiple of {ways}"
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
        return self.processes // (self.tensor * self.context * self.pipeline)

    def spread(self, num_experts: int | None) -> Layout:
        """This layout for a model of so many experts (None: dense).

        As many processes. Where `expert` doesn't divide the experts they are spread over as many
        ranks as divide both.
        """
        expert = math.gcd(self.expert, num_experts or 1)
        expert_tensor = None if expert == 1 else self.expert_tensor
        return dataclasses.replace(self, expert=expert, expert_tensor=expert_tensor)

    def fitted(self, num_experts: int | None) -> Layout:
        """This layout, spread, for generating with such a model.

        Context-parallel ranks become data-parallel ones: they would share rows.
        """
        return dataclasses.replace(self.spread(num_experts), context=1)

    def __str__(self) -> str:
        sizes = {"tp": self.tensor, "pp": self.pipeline, "ep": self.expert, "dp": self.data}
        if self.context > 1:
            sizes["cp"] = self.context
        return " ".join(f"{name}{size}" for name, size in sizes.items())
