"""The loss that a stage on rows minimises: the mean of a token's, or of a preference pair's.

Shapes: B batch, S sequence as a batch has them; R rows, which may lie in one sequence; H = S / 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from megatron_bar.data.batch import Batch


@dataclass(frozen=True)
class Losses:
    """The losses of a micro-batch, at the places of its tokens."""

    losses_BS: torch.Tensor
    counted_BS: torch.Tensor  # 1 at each place that the mean is over
    sums: torch.Tensor  # of the objective's `metrics`


class Objective(Protocol):
    """A loss whose mean over the global batch is minimised."""

    metrics: ClassVar[tuple[str, ...]]  # what more it tells, each a mean over the same

    def losses(self, batch: Batch, loss_BS: torch.Tensor) -> Losses:
        """The losses, from each token's own, `-log p`."""

    def count(self, batch: Batch) -> float:
        """The sum of `Losses.counted_BS`, known before the forward pass."""


class TokenLoss:
    """Cross entropy of the supervised tokens."""

    metrics: ClassVar[tuple[str, ...]] = ()

    def losses(self, batch: Batch, loss_BS: torch.Tensor) -> Losses:
        mask_BS = batch.loss_mask_BS
        return Losses(loss_BS * mask_BS, mask_BS, loss_BS.new_zeros(0))

    def count(self, batch: Batch) -> float:
        return float(batch.loss_mask_BS.sum())


TOKENS = TokenLoss()


@dataclass(frozen=True)
class ChosenOverRejected:
    """The log-probability of a pair's chosen answer less that of its rejected one, of each row.

    With `length_normalized` each is the mean over the answer's tokens, else their sum. What the
    reference policy says of a pair is this "loss" by its weights.
    """

    length_normalized: bool
    metrics: ClassVar[tuple[str, ...]] = ()

    def losses(self, batch: Batch, loss_BS: torch.Tensor) -> Losses:
        return _of_rows(batch, self.of(batch, loss_BS), loss_BS.new_zeros(0))

    def count(self, batch: Batch) -> float:
        return float(_has_pair(batch).sum())

    def of(self, batch: Batch, loss_BS: torch.Tensor) -> torch.Tensor:
        mask_R2H = _halves(batch, batch.loss_mask_BS)
        logprobs_R2 = -(_halves(batch, loss_BS) * mask_R2H).sum(-1)
        if self.length_normalized:
            logprobs_R2 = logprobs_R2 / mask_R2H.sum(-1).clamp_min(1)
        return logprobs_R2[:, 0] - logprobs_R2[:, 1]


@dataclass(frozen=True)
class PreferenceLoss:
    """DPO's loss of a pair (arXiv 2305.18290): `-log sigmoid(beta (d - d_ref))`.

    d is `ChosenOverRejected`, d_ref the same by the reference policy, `Batch.reference_R`.
    """

    beta: float
    difference: ChosenOverRejected
    # The share of pairs whose chosen answer gained more than the rejected one, and by how much.
    metrics: ClassVar[tuple[str, ...]] = ("reward_accuracy", "reward_margin")

    def losses(self, batch: Batch, loss_BS: torch.Tensor) -> Losses:
        assert batch.reference_R is not None
        margin_R = self.beta * (self.difference.of(batch, loss_BS) - batch.reference_R)
        told_2R = torch.stack([(margin_R > 0).float(), margin_R.detach()]) * _has_pair(batch)
        return _of_rows(batch, -torch.nn.functional.logsigmoid(margin_R), told_2R.sum(-1))

    def count(self, batch: Batch) -> float:
        return self.difference.count(batch)


def _halves(batch: Batch, x_BS: torch.Tensor) -> torch.Tensor:
    return batch.by_row(x_BS).unflatten(-1, (2, -1))


def _has_pair(batch: Batch) -> torch.Tensor:
    """1 for a row that counts."""
    return batch.by_row(batch.loss_mask_BS).amax(-1)


def _of_rows(batch: Batch, loss_R: torch.Tensor, sums: torch.Tensor) -> Losses:
    """A loss a row, at the row's first place, whose label is of the pair's source."""
    mask_BS, counted_R = batch.loss_mask_BS, _has_pair(batch)
    padding = (0, batch.by_row(mask_BS).shape[1] - 1)
    losses_BS, counted_BS = (
        torch.nn.functional.pad(x_R[:, None], padding).reshape_as(mask_BS)
        for x_R in (loss_R * counted_R, counted_R)
    )
    return Losses(losses_BS, counted_BS, sums)
