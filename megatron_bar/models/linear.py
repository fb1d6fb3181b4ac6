"""Megatron's tensor-parallel linear layers, without the cost of autograd where there is none."""

from __future__ import annotations

import torch
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear


class _Linear:
    """Multiplies directly while gradients are off.

    Megatron's function, made for its backward pass, takes longer around the product of a
    generation step's few tokens than the product itself.
    """

    def _forward_impl(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, **settings
    ) -> torch.Tensor:
        if torch.is_grad_enabled() or settings["sequence_parallel"]:
            return super()._forward_impl(input, weight, bias, **settings)
        return torch.nn.functional.linear(input, weight, bias)


class _Column(_Linear, ColumnParallelLinear):
    pass


class _Row(_Linear, RowParallelLinear):
    pass


class LocalParts(LocalSpecProvider):
    """Megatron's own parts, for where Transformer Engine doesn't run, with these linear layers."""

    def column_parallel_linear(self) -> type:
        return _Column

    def row_parallel_linear(self) -> type:
        return _Row
