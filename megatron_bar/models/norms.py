"""RMS norms: before or after a sub-layer, and over a head or the full width of queries and keys.

Matches transformers' Olmo2RMSNorm: computed in fp32, multiplied by the weight before casting back.
Qwen3RMSNorm casts first, which in bf16 rounds once more.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch.autograd.function import once_differentiable


class _Normed(torch.autograd.Function):
    """`weight * x / sqrt(mean(x^2) + eps)` over the last dimension, in fp32, in the type of `x`.

    `x` may be a part of `width`, whose other parts the ranks of `group` hold: one number a token
    crosses ranks forward and one backward, since each rank's output depends on the total. Without
    the backward reduction the input gradient is wrong by tens of percent. It keeps `x` and a number
    a token, and makes half the passes over memory that autograd would.
    """

    @staticmethod
    def forward(
        ctx, x: torch.Tensor, weight: torch.Tensor, eps: float, width: int,
        group: dist.ProcessGroup | None,
    ) -> torch.Tensor:
        normed, scale = _normed_and_scale(x, weight, eps, width, group)
        ctx.save_for_backward(x, weight, scale)
        ctx.width, ctx.group = width, group
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        x_fp32, grad_fp32 = x.float(), grad.float()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad_fp32 * x_fp32).mul_(scale).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            grad_x = grad_fp32 * weight
            dot = torch.linalg.vecdot(grad_x, x_fp32).unsqueeze(-1)
            along_x = _summed(dot, ctx.group) * scale**3 / ctx.width
            grad_x = grad_x.mul_(scale).addcmul_(x_fp32, along_x, value=-1).to(x.dtype)
        return grad_x, grad_weight, None, None, None


def _normed(
    x: torch.Tensor, weight: torch.Tensor, eps: float, width: int, group: dist.ProcessGroup | None
) -> torch.Tensor:
    """See _Normed. While generating, what autograd does around it costs as much as the norm."""
    if torch.is_grad_enabled():
        return _Normed.apply(x, weight, eps, width, group)
    return _normed_and_scale(x, weight, eps, width, group)[0]


def _normed_and_scale(
    x: torch.Tensor, weight: torch.Tensor, eps: float, width: int, group: dist.ProcessGroup | None
) -> tuple[torch.Tensor, torch.Tensor]:
    x_fp32 = x.float()
    # Its square is the same as x . x, which would write all products to memory first.
    squares = torch.linalg.vector_norm(x_fp32, dim=-1, keepdim=True).square()
    scale = torch.rsqrt(_summed(squares, group) / width + eps)
    return (x_fp32 * scale).mul_(weight).to(x.dtype), scale


def _summed(part: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The sum over the ranks of `group` of `part`, which it takes the place of."""
    if group is not None and group.size() > 1:
        dist.all_reduce(part, group=group)
    return part


class RMSNorm(torch.nn.Module):
    """RMSNorm over the last dimension; `[..., H] -> [..., H]`.

    The weight is whole on every tensor-parallel rank. Under sequence parallelism each rank sees a
    part of the tokens, so the weight is marked for Megatron's gradient sum over those ranks.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_unused
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
        )
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _normed(x, self.weight, self.eps, x.shape[-1], None)


class FullWidthRMSNorm(torch.nn.Module):
    """RMSNorm over all heads of the queries or keys, whose heads are sharded over `tp_group`.

    `x_SBND -> x_SBND` with this rank's heads; the mean of squares runs over the full width W. One
    number per token crosses ranks. The weight is sharded like the heads. It must not be called
    q_layernorm or k_layernorm: Megatron sums the gradients of parameters of that name over ranks,
    which would add up different heads.
    """

    def __init__(
        self, config: TransformerConfig, width: int, tp_group: dist.ProcessGroup
    ) -> None:
        super().__init__()
        self.eps = config.layernorm_epsilon
        self.width = width
        self.tp_group = tp_group
        self.weight = torch.nn.Parameter(
            torch.ones(
                width // tp_group.size(),
                dtype=config.params_dtype,
                device=torch.cuda.current_device(),
            )
        )
        set_tensor_model_parallel_attributes(self.weight, is_parallel=True, dim=0, stride=1)

    def forward(self, x_SBND: torch.Tensor) -> torch.Tensor:
        x_SBW = x_SBND.flatten(-2)
        normed_SBW = _normed(x_SBW, self.weight, self.eps, self.width, self.tp_group)
        return normed_SBW.view_as(x_SBND)

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        return make_sharded_tensors_for_checkpoint(
            {"weight": self.weight}, prefix, {"weight": 0}, sharded_offsets,
            tp_group=self.tp_group, dp_cp_group=metadata["dp_cp_group"],
        )


class NormThenAdd(RMSNorm):
    """`residual + norm(sub-layer output)`, in Megatron's bias-dropout-add slots.

    Of models that norm what attention and the (combined) FFN put out, not what they take in.
    Megatron's layer calls its slot to get a function of (output, bias), residual and dropout; there
    is neither bias nor dropout.
    """

    def forward(self, training: bool, fused: bool) -> Callable[..., torch.Tensor]:
        return self._norm_then_add

    def _norm_then_add(
        self, output_with_bias: tuple, residual_SBH: torch.Tensor, dropout: float
    ) -> torch.Tensor:
        output_SBH, bias = output_with_bias
        assert bias is None and not dropout
        return residual_SBH + super().forward(output_SBH)
