"""The head and the loss of next tokens, over a vocabulary that tensor-parallel ranks share.

They are computed for some tokens after the other, so that neither fp32 logits of all positions nor
their gradient ever exist, and for a head that is frozen no logits outlive their chunk. Megatron's
loss takes whole logits, and lets padding rows take part: docs/own-code.md.

Shapes: T tokens, t those of a chunk; V this rank's rows of the vocabulary, padding included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from megatron_bar.models.loss_chunks import KEPT_BYTES, chunk_tokens
from megatron_bar.runtime.fusing import fused

_NOTHING = -1e30  # a logit of no weight, finite so that differences stay numbers


@dataclass(frozen=True)
class Targets:
    """The next tokens, and what is asked about them, in the place of a model's `labels`."""

    tokens_BS: torch.Tensor
    temperature: float = 1.0  # what logits are divided by
    with_entropy: bool = False  # of the distribution, too, in nats and without a gradient


def linear_loss(
    x_TH: torch.Tensor,
    head_VH: torch.Tensor,
    labels_T: torch.Tensor,
    vocabulary: int,
    group: dist.ProcessGroup,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`-log p` of `labels_T`, and the entropy of p where it is asked for; both [T], in fp32.

    p is the softmax of `x_TH @ head_VH.T / temperature`; all ranks of `group` get the same.
    `head_VH` holds this rank's part of a vocabulary that is padded behind its `vocabulary` rows.
    Megatron lets padding rows take part in the softmax; transformers has no such rows, so they
    would change the loss and every gradient. The gradient of `x_TH` is that of this rank's part of
    the vocabulary, the caller sums it.
    """
    rows = len(head_VH)
    first = group.rank() * rows
    real = min(max(vocabulary - first, 0), rows)
    loss_T, entropy_T = _LinearLoss.apply(
        x_TH, head_VH, labels_T, first, real, group, temperature, with_entropy
    )
    return loss_T, entropy_T if with_entropy else None


class _LinearLoss(torch.autograd.Function):
    """See `linear_loss`. This rank's first `real` rows, from the vocabulary's `first` on, count.

    How the loss of a token depends on its hidden state is known in the forward pass, but for a
    factor. So with a frozen head that is all that is kept.
    """

    @staticmethod
    def forward(
        ctx,
        x_TH: torch.Tensor,
        head_VH: torch.Tensor,
        labels_T: torch.Tensor,
        first: int,
        real: int,
        group: dist.ProcessGroup,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needs_x, needs_head = ctx.needs_input_grad[:2]
        is_here_T = (labels_T >= first) & (labels_T < first + real)
        index_T1 = (labels_T - first).where(is_here_T, 0).unsqueeze(-1)
        size = chunk_tokens(len(head_VH), x_TH.is_cuda)
        whole = len(x_TH) * len(head_VH) * x_TH.element_size()
        keeps_logits = needs_head and whole <= KEPT_BYTES
        kept_TV = x_TH.new_empty(len(x_TH), len(head_VH)) if keeps_logits else None
        losses, entropies, sums = [], [], []
        grad_x_TH = torch.empty_like(x_TH) if needs_x and not needs_head else None
        for start in range(0, len(x_TH), size):
            chunk = slice(start, start + size)
            logits_tV = _logits(x_TH[chunk], head_VH, real, kept_TV, chunk)
            here_t1 = is_here_T[chunk].unsqueeze(-1)
            log_sum_t1, label_t1, entropy_t1 = _over_ranks(
                *_statistics(logits_tV, index_T1[chunk], here_t1, temperature, with_entropy), group
            )
            losses.append(log_sum_t1 - label_t1)
            entropies.append(entropy_t1)
            sums.append(log_sum_t1)
            if grad_x_TH is not None:
                one_t1 = torch.ones_like(log_sum_t1)
                grad_tV = _gradient(
                    logits_tV, log_sum_t1, index_T1[chunk], here_t1, one_t1, temperature
                )
                torch.mm(grad_tV, head_VH, out=grad_x_TH[chunk])
        if needs_head:
            ctx.save_for_backward(x_TH, head_VH, index_T1, is_here_T, torch.cat(sums), kept_TV)
        else:
            ctx.save_for_backward(grad_x_TH)
        ctx.real, ctx.size, ctx.temperature = real, size, temperature
        loss_T, entropy_T = torch.cat(losses)[:, 0], torch.cat(entropies)[:, 0]
        ctx.mark_non_differentiable(entropy_T)
        return loss_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_T: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needs_x, needs_head = ctx.needs_input_grad[:2]
        nothing = (None,) * 6
        if not needs_head:
            (grad_x_TH,) = ctx.saved_tensors
            return _scaled(grad_x_TH, grad_T.unsqueeze(-1)), None, *nothing
        x_TH, head_VH, index_T1, is_here_T, log_sum_T1, kept_TV = ctx.saved_tensors
        grad_x_TH = torch.empty_like(x_TH) if needs_x else None
        # Chunks are added up in fp32, whatever the head's type.
        sum_VH = None if kept_TV is not None else torch.zeros_like(head_VH, dtype=torch.float32)
        for start in range(0, len(x_TH), ctx.size):
            chunk = slice(start, start + ctx.size)
            logits_tV = (
                _logits(x_TH[chunk], head_VH, ctx.real) if kept_TV is None else kept_TV[chunk]
            )
            grad_tV = _gradient(
                logits_tV,
                log_sum_T1[chunk],
                index_T1[chunk],
                is_here_T[chunk].unsqueeze(-1),
                grad_T[chunk].unsqueeze(-1),
                ctx.temperature,
            )
            if grad_x_TH is not None:
                torch.mm(grad_tV, head_VH, out=grad_x_TH[chunk])
            if sum_VH is None:
                logits_tV.copy_(grad_tV)
            else:
                sum_VH += grad_tV.t() @ x_TH[chunk]
        grad_VH = kept_TV.t() @ x_TH if sum_VH is None else sum_VH.to(head_VH.dtype)
        return grad_x_TH, grad_VH, *nothing


def _logits(
    x_tH: torch.Tensor,
    head_VH: torch.Tensor,
    real: int,
    kept_TV: torch.Tensor | None = None,
    chunk: slice = slice(None),
) -> torch.Tensor:
    """Logits of which those behind the first `real` have no weight; in their place of `kept_TV`.

    All are computed: a GPU multiplies widths slowly that aren't round.
    """
    logits_tV = torch.mm(x_tH, head_VH.t(), out=None if kept_TV is None else kept_TV[chunk])
    logits_tV[:, real:] = _NOTHING
    return logits_tV


@fused
def _statistics(
    logits_tV: torch.Tensor,
    index_t1: torch.Tensor,
    is_here_t1: torch.Tensor,
    temperature: float,
    with_entropy: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of this rank's rows, each [t, 1]: logsumexp, the label's logit, the mean of log p under p."""
    scaled_tV = logits_tV.float()
    if temperature != 1.0:
        scaled_tV = scaled_tV / temperature
    log_sum_t1 = scaled_tV.logsumexp(-1, keepdim=True)
    label_t1 = scaled_tV.gather(-1, index_t1) * is_here_t1
    mean_t1 = torch.zeros_like(log_sum_t1)
    if with_entropy:
        log_probs_tV = scaled_tV - log_sum_t1
        mean_t1 = (log_probs_tV.exp() * log_probs_tV).sum(-1, keepdim=True)
    return log_sum_t1, label_t1, mean_t1


def _over_ranks(
    log_sum_t1: torch.Tensor,
    label_t1: torch.Tensor,
    mean_t1: torch.Tensor,
    group: dist.ProcessGroup,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Over all rows of the vocabulary: logsumexp, the label's logit, the entropy."""
    if group.size() == 1:
        return log_sum_t1, label_t1, -mean_t1
    largest_t1 = log_sum_t1.clone()
    dist.all_reduce(largest_t1, op=dist.ReduceOp.MAX, group=group)
    below_t1 = log_sum_t1 - largest_t1
    weight_t1 = below_t1.exp()
    sums_t3 = torch.cat((weight_t1, label_t1, weight_t1 * (below_t1 + mean_t1)), dim=-1)
    dist.all_reduce(sums_t3, group=group)
    weight_t1, label_t1, mean_t1 = sums_t3.split(1, dim=-1)
    return (largest_t1 + weight_t1.log(), label_t1, weight_t1.log() - mean_t1 / weight_t1)


@fused
def _gradient(
    logits_tV: torch.Tensor,
    log_sum_t1: torch.Tensor,
    index_t1: torch.Tensor,
    is_here_t1: torch.Tensor,
    grad_t1: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """The gradient of the logits, in their type: `(p - 1 at the label) * grad`."""
    factor_t1 = grad_t1 / temperature
    scaled_tV = logits_tV.float()
    label_t1 = scaled_tV.gather(-1, index_t1)
    if temperature != 1.0:
        scaled_tV, label_t1 = scaled_tV / temperature, label_t1 / temperature
    grad_tV = (scaled_tV - log_sum_t1).exp_().mul_(factor_t1).to(logits_tV.dtype)
    # Not by adding to what is rounded: near p = 1 nothing but rounding would be left.
    at_label_t1 = ((label_t1 - log_sum_t1).exp() - is_here_t1.float()) * factor_t1
    return grad_tV.scatter_(-1, index_t1, at_label_t1.to(logits_tV.dtype))


@fused
def _scaled(grad_TH: torch.Tensor, factor_T1: torch.Tensor) -> torch.Tensor:
    return (grad_TH * factor_T1).to(grad_TH.dtype)
