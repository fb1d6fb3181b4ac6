"""The loss of next tokens, over a vocabulary that tensor-parallel ranks share.

Megatron's is as fast. It lets padding rows take part, and overwrites fp32 logits, which are still
needed: docs/own-code.md.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

_NOTHING = -1e30  # a logit of no weight, finite so that differences stay numbers


class _VocabularyLoss(torch.autograd.Function):
    """Cross entropy over this rank's first `real` columns, which start at column `first` of V.

    One fused pass forward and two backward, in place of what was kept. The columns behind `real`
    pad the vocabulary: they take no part and have a gradient of zero.
    """

    @staticmethod
    def forward(
        ctx, logits_SBV: torch.Tensor, labels_SB: torch.Tensor, first: int, real: int,
        group: dist.ProcessGroup,
    ) -> torch.Tensor:
        if real:
            part_SBV = logits_SBV[..., :real]
        else:  # this rank has padding only
            part_SBV = torch.full_like(logits_SBV[..., :1], _NOTHING)
        log_probs_SBV = torch.log_softmax(part_SBV, -1, dtype=torch.float32)
        is_here_SB = (labels_SB >= first) & (labels_SB < first + real)
        index_SB1 = (labels_SB - first).where(is_here_SB, 0).unsqueeze(-1)
        if group.size() > 1:
            log_sum_SB = part_SBV[..., 0].float() - log_probs_SBV[..., 0]
            largest_SB = log_sum_SB.clone()
            dist.all_reduce(largest_SB, op=dist.ReduceOp.MAX, group=group)
            sum_SB = (log_sum_SB - largest_SB).exp_()
            dist.all_reduce(sum_SB, group=group)
            log_probs_SBV += (log_sum_SB - largest_SB - sum_SB.log()).unsqueeze(-1)
        loss_SB = -log_probs_SBV.gather(-1, index_SB1).squeeze(-1) * is_here_SB
        if group.size() > 1:
            dist.all_reduce(loss_SB, group=group)
        ctx.save_for_backward(log_probs_SBV, index_SB1, is_here_SB)
        ctx.shape, ctx.dtype, ctx.real = logits_SBV.shape, logits_SBV.dtype, real
        return loss_SB

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_SB: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        log_probs_SBV, index_SB1, is_here_SB = ctx.saved_tensors
        grad_SB1 = grad_SB.unsqueeze(-1)
        grad_SBV = log_probs_SBV.exp_().mul_(grad_SB1)
        grad_SBV.scatter_add_(-1, index_SB1, -(grad_SB1 * is_here_SB.unsqueeze(-1)))
        if ctx.real < ctx.shape[-1]:
            part_SBV = grad_SBV[..., : ctx.real]
            grad_SBV = part_SBV.new_zeros(ctx.shape)
            grad_SBV[..., : ctx.real] = part_SBV
        return grad_SBV.to(ctx.dtype), None, None, None, None


def vocabulary_loss(
    logits_SBV: torch.Tensor, labels_SB: torch.Tensor, vocabulary: int, group: dist.ProcessGroup
) -> torch.Tensor:
    """`logits_SBV, labels_SB -> loss_SB`, in fp32, the same on every rank of `group`.

    `logits_SBV` holds this rank's part of a vocabulary that is padded behind its `vocabulary`
    rows. Megatron lets padding rows take part in the softmax; transformers has no such rows, so
    they would change the loss and every gradient.
    """
    columns = logits_SBV.shape[-1]
    first = group.rank() * columns
    real = min(max(vocabulary - first, 0), columns)
    return _VocabularyLoss.apply(logits_SBV, labels_SB, first, real, group)
