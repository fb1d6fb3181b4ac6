"""Fisher-weighted mean (arXiv 2111.09832), by AdamW's second moments at the end of a branch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from megatron_bar.checkpoints.merging.sources import BAND, Holder, SharedTensor
from megatron_bar.checkpoints.second_moments import SecondMoments
from megatron_bar.runtime.errors import BarError


@dataclass(frozen=True)
class Fisher:
    """The mean over branches of each number, weighed by its mean squared gradient in that branch.

    That is AdamW's `exp_avg_sq` after the branch's last step, a running mean over the last
    1 / (1 - beta2) steps of the squared gradient of a batch, clipped as it was: the diagonal of the
    empirical Fisher information but for the batch. The anchor takes no part, nor a branch that
    never trained the tensor. Where no branch has a gradient it is the mean over those that did.

    Raises BarError for a branch that moved a tensor and left no second moments of it.
    """

    PASSES: ClassVar[int] = 1

    def __call__(self, tensor: SharedTensor) -> Iterator[torch.Tensor]:
        moments = [_moments(branch) for branch in tensor.branches]
        trained = [i for i, found in enumerate(moments) if found is not None]
        known = zip(*(moments[i] for i in trained))
        for anchor, branches in tensor.bands():
            for branch, found, values in zip(tensor.branches, moments, branches):
                if found is None and not torch.equal(values, anchor):
                    raise BarError(
                        f"{branch.folder}: {tensor.label} has moved, and there are no second "
                        "moments of it; make the branch's last stage that trains it its last "
                        "stage, with second_moments: true"
                    )
            if not trained:
                yield anchor
                continue
            weights_N = torch.stack(next(known)).view(len(trained), *anchor.shape)
            values_N, total = branches[trained], weights_N.sum(0)
            weighted = (values_N * weights_N).sum(0) / total.where(total > 0, 1.0)
            yield weighted.where(total > 0, values_N.mean(0))


def _moments(branch: Holder) -> Iterator[torch.Tensor] | None:
    return SecondMoments(branch.folder).bands(branch.slot, BAND)
