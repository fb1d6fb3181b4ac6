"""RMS norms: before or after a sub-layer, and over a head or the full width of queries and keys.

Matches transformers' Olmo2RMSNorm: computed in fp32, multiplied by the weight before casting back.
Qwen3RMSNorm casts first, which in bf16 rounds once more. What follows a norm is done in the same
pass: the rotation of queries and keys, or the residual's addition.

Shapes: T tokens, W the width of this rank's part, h half a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch.autograd.function import once_differentiable

from megatron_bar.models.rope import rotate
from megatron_bar.runtime.fusing import fused

_SEQUENCE_PARALLEL = "sequence_parallel"  # Megatron's mark of a parameter


class _Normed(torch.autograd.Function):
    """`weight * x / sqrt(mean(x^2) + eps)` over the last dimension, in fp32, in the type of `x`;
    then rotated by `rotation`, cosines and sines, or added to `residual`, where these are given.

    `x` may be a part of `width`, whose other parts the ranks of `group` hold: one number a token
    crosses ranks forward and one backward, since each rank's output depends on the total. Without
    the backward reduction the input gradient is wrong by tens of percent. It keeps `x` and a number
    a token, and makes half the passes over memory that autograd would.
    """

    @staticmethod
    def forward(
        ctx,
        x_TW: torch.Tensor,
        weight_W: torch.Tensor,
        residual_TW: torch.Tensor | None,
        rotation: tuple[torch.Tensor, torch.Tensor] | None,
        eps: float,
        width: int,
        group: dist.ProcessGroup | None,
    ) -> torch.Tensor:
        y_TW, scale_T1 = _forward(x_TW, weight_W, residual_TW, rotation, eps, width, group)
        ctx.save_for_backward(x_TW, weight_W, scale_T1, *(rotation or ()))
        ctx.width, ctx.group = width, group
        return y_TW

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TW: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TW, weight_W, scale_T1, *rotation = ctx.saved_tensors
        needs_x, needs_weight, needs_residual = ctx.needs_input_grad[:3]
        along = (x_TW, weight_W, scale_T1, rotation or None, needs_x, needs_weight)
        if not needs_x or not _is_shared(ctx.group):
            grad_x_TW, grad_weight_W = _gradients(grad_TW, *along, ctx.width)
        else:
            grad_x_TW, dot_T1, grad_weight_W = _towards_x(grad_TW, *along)
            assert grad_x_TW is not None and dot_T1 is not None
            dist.all_reduce(dot_T1, group=ctx.group)
            grad_x_TW = _across_x(grad_x_TW, x_TW, dot_T1, scale_T1, ctx.width)
        return (
            grad_x_TW,
            grad_weight_W,
            grad_TW if needs_residual else None,
            None,
            None,
            None,
            None,
        )


def _is_shared(group: dist.ProcessGroup | None) -> bool:
    return group is not None and group.size() > 1


def _normed(
    x: torch.Tensor,
    weight_W: torch.Tensor,
    eps: float,
    width: int,
    group: dist.ProcessGroup | None = None,
    residual: torch.Tensor | None = None,
    rotation: torch.Tensor | None = None,
) -> torch.Tensor:
    """See _Normed; `x` is of any shape whose last dimension is W, `rotation` is [2, ..., 1, h]."""
    x_TW = x.reshape(-1, x.shape[-1])
    residual_TW = None if residual is None else residual.reshape(x_TW.shape)
    turns = None
    if rotation is not None:
        turns = tuple(part.reshape(-1, *part.shape[-2:]) for part in rotation)
    # While generating, what autograd does around it costs as much as the norm.
    apply = _Normed.apply if torch.is_grad_enabled() else _forward_alone
    return apply(x_TW, weight_W, residual_TW, turns, eps, width, group).view(x.shape)


def _forward_alone(*args) -> torch.Tensor:
    return _forward(*args)[0]


def _forward(
    x_TW: torch.Tensor,
    weight_W: torch.Tensor,
    residual_TW: torch.Tensor | None,
    rotation: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    width: int,
    group: dist.ProcessGroup | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    squares_T1 = None
    if _is_shared(group):
        squares_T1 = _squares(x_TW)
        dist.all_reduce(squares_T1, group=group)
    return _norm(x_TW, weight_W, residual_TW, rotation, squares_T1, eps, width)


def _squares_of(x_TW: torch.Tensor) -> torch.Tensor:
    # Its square is the same as x . x, which would write all products to memory first.
    return torch.linalg.vector_norm(x_TW.float(), dim=-1, keepdim=True).square()


_squares = fused(_squares_of)


@fused
def _norm(
    x_TW: torch.Tensor,
    weight_W: torch.Tensor,
    residual_TW: torch.Tensor | None,
    rotation: tuple[torch.Tensor, torch.Tensor] | None,
    squares_T1: torch.Tensor | None,
    eps: float,
    width: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and what tokens were multiplied by. Without `squares_T1` all of W is here."""
    if squares_T1 is None:
        squares_T1 = _squares_of(x_TW)
    scale_T1 = (squares_T1 / width).add_(eps).rsqrt_()
    y_TW = (x_TW.float() * scale_T1).mul_(weight_W)
    if rotation is not None:
        y_TW = _turned(y_TW, rotation)
    y_TW = y_TW.type_as(x_TW)
    return y_TW if residual_TW is None else y_TW.add_(residual_TW), scale_T1


def _turned(
    x_TW: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], inverse: bool = False
) -> torch.Tensor:
    x_TND = x_TW.unflatten(-1, (-1, 2 * rotation[0].shape[-1]))
    return rotate(x_TND, *rotation, inverse=inverse).flatten(-2)


def _towards(
    grad_TW: torch.Tensor,
    x_TW: torch.Tensor,
    weight_W: torch.Tensor,
    scale_T1: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor] | None,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[torch.Tensor | None, ...]:
    """The gradient of `x` as if its length were no part of it, this times x, the weight's."""
    grad_fp32_TW, x_fp32_TW = grad_TW.float(), x_TW.float()
    if rotation is not None:
        grad_fp32_TW = _turned(grad_fp32_TW, rotation, inverse=True)
    grad_x_TW = dot_T1 = grad_weight_W = None
    if needs_weight:
        grad_weight_W = (grad_fp32_TW * x_fp32_TW).mul_(scale_T1).sum(0).to(weight_W.dtype)
    if needs_x:
        grad_x_TW = grad_fp32_TW * weight_W
        dot_T1 = torch.linalg.vecdot(grad_x_TW, x_fp32_TW).unsqueeze(-1)
    return grad_x_TW, dot_T1, grad_weight_W


def _across(
    grad_x_TW: torch.Tensor,
    x_TW: torch.Tensor,
    dot_T1: torch.Tensor,
    scale_T1: torch.Tensor,
    width: int,
) -> torch.Tensor:
    along_x_T1 = dot_T1 * scale_T1**3 / width
    return grad_x_TW.mul_(scale_T1).addcmul_(x_TW.float(), along_x_T1, value=-1).to(x_TW.dtype)


_towards_x, _across_x = fused(_towards), fused(_across)


@fused
def _gradients(
    grad_TW: torch.Tensor,
    x_TW: torch.Tensor,
    weight_W: torch.Tensor,
    scale_T1: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor] | None,
    needs_x: bool,
    needs_weight: bool,
    width: int,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of `x`, all of whose width is here, and of the weight."""
    grad_x_TW, dot_T1, grad_weight_W = _towards(
        grad_TW, x_TW, weight_W, scale_T1, rotation, needs_x, needs_weight
    )
    if grad_x_TW is not None and dot_T1 is not None:
        grad_x_TW = _across(grad_x_TW, x_TW, dot_T1, scale_T1, width)
    return grad_x_TW, grad_weight_W


class _OverHidden(torch.nn.Module):
    """A norm over the last dimension.

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
        setattr(self.weight, _SEQUENCE_PARALLEL, config.sequence_parallel)


class RMSNorm(_OverHidden):
    """RMSNorm over the last dimension; `[..., H] -> [..., H]`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _normed(x, self.weight, self.eps, x.shape[-1])


class FullWidthRMSNorm(torch.nn.Module):
    """RMSNorm over all heads of the queries or keys, whose heads are sharded over `tp_group`.

    `x_SBND -> x_SBND` with this rank's heads; the mean of squares runs over the full width W. One
    number per token crosses ranks. The weight is sharded like the heads. It must not be called
    q_layernorm or k_layernorm: Megatron sums the gradients of parameters of that name over ranks,
    which would add up different heads.
    """

    def __init__(self, config: TransformerConfig, width: int, tp_group: dist.ProcessGroup) -> None:
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

    def forward(self, x_SBND: torch.Tensor, rotation: torch.Tensor | None = None) -> torch.Tensor:
        """Norm and, with `rotation` of [2, S, B, 1, h], rotate in the same pass."""
        normed_SBW = _normed(
            x_SBND.flatten(-2), self.weight, self.eps, self.width, self.tp_group, rotation=rotation
        )
        return normed_SBW.view(x_SBND.shape)

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        return make_sharded_tensors_for_checkpoint(
            {"weight": self.weight},
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )


class NormThenAdd(_OverHidden):
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
        return _normed(
            output_SBH, self.weight, self.eps, output_SBH.shape[-1], residual=residual_SBH
        )
