"""Megatron's tensor-parallel linear layers, without the cost of autograd where there is none.

Megatron's function, made for its backward pass, takes longer around the product of a generation
step's few tokens than the product itself. So while gradients are off these layers multiply
directly, where nothing but the product and its sum over ranks is asked for.
"""

from __future__ import annotations

import torch
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear


def _is_plain_product(layer: ColumnParallelLinear | RowParallelLinear) -> bool:
    gathers_tokens = layer.sequence_parallel and not layer.explicit_expert_comm
    return not (torch.is_grad_enabled() or gathers_tokens or layer.bias is not None)


class _Column(ColumnParallelLinear):
    def forward(
        self,
        input_: torch.Tensor,
        weight: torch.Tensor | None = None,
        runtime_gather_output: bool | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`x_SBI -> x_SBO` with this rank's part of O; see Megatron's."""
        gathers = self.gather_output if runtime_gather_output is None else runtime_gather_output
        if _is_plain_product(self) and not (gathers and self.tp_group.size() > 1):
            weight = self.weight if weight is None else weight
            return torch.nn.functional.linear(input_, weight), None
        return super().forward(input_, weight, runtime_gather_output)


class _Row(RowParallelLinear):
    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`x_SBI -> x_SBO` with this rank's part of I; see Megatron's."""
        if self.input_is_parallel and _is_plain_product(self):
            part = torch.nn.functional.linear(input_, self.weight)
            if self.explicit_expert_comm or self.tp_group.size() == 1:  # the expert layer sums
                return part, None
            return reduce_from_tensor_model_parallel_region(part, group=self.tp_group), None
        return super().forward(input_)


class LocalParts(LocalSpecProvider):
    """Megatron's own parts, for where Transformer Engine doesn't run, with these linear layers."""

    def column_parallel_linear(self) -> type:
        return _Column

    def row_parallel_linear(self) -> type:
        return _Row
