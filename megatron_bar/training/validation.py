"""The loss on data that the stage doesn't train on, by source."""

from __future__ import annotations

import dataclasses

import torch
from megatron.core import parallel_state

from megatron_bar.data.batch import Batch, to_batch
from megatron_bar.data.rows import Rows
from megatron_bar.training.step import forward_backward
from megatron_bar.training.step_metrics import losses_by_source


def validation_losses(
    model: torch.nn.Module, rows: Rows, pad_id: int, micro_batch_size: int
) -> dict[str, float]:
    """`validation_loss` over all supervised tokens of `rows`, and of each source by its name.

    Forward passes only; every rank calls this. The model is left in training mode.
    """
    size = parallel_state.get_data_parallel_world_size()
    rank = parallel_state.get_data_parallel_rank()
    model.eval()
    with torch.no_grad():
        result = forward_backward(
            model,
            _share(rows, pad_id, micro_batch_size, rank, size),
            len(rows.source_names),
            train=False,
        )
    model.train()
    return {"validation_loss": result.loss} | losses_by_source(
        "validation_loss", rows.source_names, result.by_source_D2
    )


def _share(rows: Rows, pad_id: int, micro_batch_size: int, rank: int, size: int) -> list[Batch]:
    """A rank's micro-batches. Ranks need equally many, so the last ones may be without loss."""
    each = -(-len(rows) // (size * micro_batch_size)) * micro_batch_size
    mine = range(rank * each, (rank + 1) * each)
    batches = []
    for start in range(0, each, micro_batch_size):
        wanted = mine[start : start + micro_batch_size]
        batch = to_batch(rows.take([min(row, len(rows) - 1) for row in wanted]), pad_id)
        counts_R1 = torch.tensor([[float(row < len(rows))] for row in wanted])
        loss_mask_RS = batch.by_row(batch.loss_mask_BS) * counts_R1
        batches.append(
            dataclasses.replace(batch, loss_mask_BS=loss_mask_RS.reshape_as(batch.loss_mask_BS))
        )
    return batches
