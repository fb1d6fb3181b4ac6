"""Row by row for embeddings and head: a token's rows from the branches that read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from megatron_bar.checkpoints.merging.sources import Holder, SharedTensor
from megatron_bar.checkpoints.names import EMBEDDINGS_NAME, HEAD_NAME
from megatron_bar.checkpoints.token_counts import FILE, read_token_counts
from megatron_bar.runtime.errors import BarError


@dataclass(frozen=True)
class RowWise:
    """The mean of a token's rows over the branches, weighed by how much each has read the token.

    A weight is the token's share of all that the branch has read, so that a token of one domain has
    its rows, and one that all domains read the mean of theirs: also of those that froze them, whose
    experts have learned to go with the anchor's. Rows of tokens that no branch has read, and all
    other tensors, are the mean over anchor and branches, as published.

    Raises BarError for a branch that doesn't tell what it has read.
    """

    PASSES: ClassVar[int] = 1

    def __call__(self, tensor: SharedTensor) -> Iterator[torch.Tensor]:
        if tensor.name not in (EMBEDDINGS_NAME, HEAD_NAME):
            for anchor, branches in tensor.bands():
                yield _mean(anchor, branches)
            return
        shares_NV, first = torch.stack([_shares(branch) for branch in tensor.branches]), 0
        for anchor, branches in tensor.bands():
            rows_NR = shares_NV[:, first : first + len(anchor)]
            first += len(anchor)
            missing = len(anchor) - rows_NR.shape[1]  # past the vocabulary
            weights_NR1 = torch.nn.functional.pad(rows_NR, (0, missing))[:, :, None]
            total_R1 = weights_NR1.sum(0)
            mean = (branches * weights_NR1).sum(0) / total_R1.where(total_R1 > 0, 1.0)
            yield mean.where(total_R1 > 0, _mean(anchor, branches))


def _mean(anchor: torch.Tensor, branches: torch.Tensor) -> torch.Tensor:
    return (anchor + branches.sum(0)) / (1 + len(branches))


def _shares(branch: Holder) -> torch.Tensor:
    """Each token's share of what the branch has read: `[V]`."""
    counts_V = read_token_counts(branch.folder)
    if counts_V is None:
        raise BarError(
            f"{branch.folder}: {FILE} is missing, which a domain's training leaves "
            "there; train the branch anew, or merge by another rule"
        )
    return torch.from_numpy(counts_V / max(1, counts_V.sum())).float()
