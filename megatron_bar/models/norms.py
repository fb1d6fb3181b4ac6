"""RMS norms as OLMo-2 has them: after a sub-layer, and over the full width of queries and keys.

Matches transformers' Olmo2RMSNorm: computed in fp32, multiplied by the weight before casting back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint


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
        x_fp32 = x.float()
        scale = torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + self.eps)
        return (self.weight * (x_fp32 * scale)).to(x.dtype)


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is all-reduced too.

    Each rank's output depends on the total, hence the gradient of the total is the sum of what the
    ranks hold. Without the backward reduction the input gradient is wrong by tens of percent.
    """

    @staticmethod
    def forward(ctx, partial: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        total = partial.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad_total: torch.Tensor) -> tuple[torch.Tensor, None]:
        grad_partial = grad_total.clone()
        dist.all_reduce(grad_partial, group=ctx.group)
        return grad_partial, None


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
        x_SBW = x_SBND.flatten(-2).float()
        sum_SB1 = x_SBW.square().sum(-1, keepdim=True)
        if self.tp_group.size() > 1:
            sum_SB1 = _SumOverRanks.apply(sum_SB1, self.tp_group)
        x_SBW = self.weight * (x_SBW * torch.rsqrt(sum_SB1 / self.width + self.eps))
        return x_SBW.to(x_SBND.dtype).view_as(x_SBND)

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        return make_sharded_tensors_for_checkpoint(
            {"weight": self.weight}, prefix, {"weight": 0}, sharded_offsets,
            tp_group=self.tp_group, dp_cp_group=metadata["dp_cp_group"],
        )


class NormThenAdd(RMSNorm):
    """`residual + norm(sub-layer output)`, in Megatron's bias-dropout-add slots.

    OLMo-2 norms what attention and the (combined) FFN put out, not what they take in. Megatron's
    layer calls its slot to get a function of (output, bias), residual and dropout; OLMo-2 has
    neither bias nor dropout.
    """

    def forward(self, training: bool, fused: bool) -> Callable[..., torch.Tensor]:
        return self._norm_then_add

    def _norm_then_add(
        self, output_with_bias: tuple, residual_SBH: torch.Tensor, dropout: float
    ) -> torch.Tensor:
        output_SBH, bias = output_with_bias
        assert bias is None and not dropout
        return residual_SBH + super().forward(output_SBH)
