"""An objective's loss of every row, by a model as it is."""

from __future__ import annotations

import itertools

import torch
from megatron.core import parallel_state

from megatron_bar.data.batch import to_batch
from megatron_bar.data.rows import Rows
from megatron_bar.models.language_model import LanguageModel
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.console import progress
from megatron_bar.runtime.distributed import of_all_ranks
from megatron_bar.training.objective import Objective
from megatron_bar.training.step import forward_backward


@torch.no_grad()
def row_losses(
    model: LanguageModel, rows: Rows, pad_id: int, training: Training, objective: Objective
) -> list[float]:
    """The loss of each row, in their order; every rank calls this and gets all.

    Forward passes over as many rows at once as a step of `training` has. The model is left in
    training mode.
    """
    group = parallel_state.get_data_parallel_group()
    size, micro = training.global_batch_size, training.micro_batch_size
    found: list[float] = []
    model.eval()
    with progress("reference", len(rows)) as advance:
        for first in range(0, len(rows), size):
            # The last batch is filled up with a row that isn't looked at.
            chosen = [min(row, len(rows) - 1) for row in range(first, first + size)]
            mine = chosen[group.rank() * size // group.size() :][: size // group.size()]
            batches = [
                to_batch(rows.take(mine[i : i + micro]), pad_id) for i in range(0, len(mine), micro)
            ]
            result = forward_backward(
                model, batches, len(rows.source_names), train=False, objective=objective
            )
            found += itertools.chain(*of_all_ranks(result.row_losses, group))
            advance(min(size, len(rows) - first))
    model.train()
    return found[: len(rows)]
