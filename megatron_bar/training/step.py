"""One step's forward and backward pass on Megatron's schedules, and what it tells."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import MegatronModule
from megatron.core.utils import unwrap_model

from megatron_bar.data.batch import Batch
from megatron_bar.data.transfer import on_device
from megatron_bar.models.flops import Work
from megatron_bar.training.objective import TOKENS, Objective


@dataclass(frozen=True)
class StepResult:
    """The result of a step, over all ranks; the same on each of them, but for `row_losses`."""

    loss: float  # the objective's mean
    tokens: int  # supervised ones
    work: Work
    # float64, on the CPU: sum of losses of each data source, and what the mean of them is over
    by_source_D2: torch.Tensor
    row_losses: list[float]  # this data-parallel rank's: sum of losses of each row
    metrics: dict[str, float]  # of the objective


def forward_backward(
    model: MegatronModule,
    batches: Sequence[Batch],
    sources: int = 1,
    train: bool = True,
    objective: Objective = TOKENS,
) -> StepResult:
    """Run this rank's micro-batches; gradients are left reduced in the parameters' buffers.

    The loss is the objective's mean over the global batch, by default over all its supervised
    tokens, so each counts the same however the batch is cut into micro-batches and ranks. `sources`
    is the number of data sources that `Batch.sources_BS` tells apart.
    """
    device = torch.cuda.current_device()
    ranks = parallel_state.get_data_parallel_world_size()
    rows, length = batches[0].tokens_BS.shape
    batches = [batch.context_part() for batch in batches]
    if unwrap_model(model).attention.by_boundaries:
        length *= rows
        batches = [batch.in_one_sequence() for batch in batches]
    tokens_group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    counts_5 = (
        torch.tensor(
            [
                [objective.count(batch), *_counts(batch, model.config.window_size)]
                for batch in batches
            ],
            dtype=torch.float64,
        )
        .sum(0)
        .to(device)
    )
    dist.all_reduce(counts_5, group=tokens_group)
    # Megatron divides by the number of micro-batches, its buffers by the data-parallel ranks.
    scale = (len(batches) * ranks / counts_5[0].clamp_min(1.0)).float()
    outputs = get_forward_backward_func()(
        forward_step_func=functools.partial(
            _forward_step, objective=objective, scale=scale, sources=sources
        ),
        data_iterator=on_device(batches),
        model=[model],
        num_microbatches=len(batches),
        seq_length=length,
        micro_batch_size=len(batches[0].tokens_BS),
        forward_only=not train,
    )
    # By source, then those of the metrics.
    sums = torch.zeros(2 * sources + len(objective.metrics), dtype=torch.float64, device=device)
    rows_MR = torch.zeros(len(batches), rows, device=device)
    for rows_R, (micro_sums, micro_rows_R) in zip(rows_MR, outputs):
        sums += micro_sums
        rows_R.copy_(micro_rows_R)
    # Only the last pipeline stage has them; tensor-parallel ranks hold the same numbers.
    dist.all_reduce(sums, group=tokens_group)
    dist.all_reduce(rows_MR, group=parallel_state.get_context_parallel_group())
    for numbers in (sums, rows_MR):
        dist.broadcast(
            numbers,
            parallel_state.get_pipeline_model_parallel_last_rank(),
            group=parallel_state.get_pipeline_model_parallel_group(),
        )
    by_source, told = sums.cpu().split([2 * sources, len(objective.metrics)])
    sums_D2 = by_source.view(sources, 2)
    counted, tokens, *work = (int(number) for number in counts_5.tolist())
    loss = sums_D2[:, 0].sum().item() / max(counted, 1)
    metrics = zip(objective.metrics, (told / max(counted, 1)).tolist())
    return StepResult(loss, tokens, Work(*work), sums_D2, rows_MR.flatten().tolist(), dict(metrics))


def _counts(batch: Batch, window: tuple[int, int] | None) -> list[float]:
    """Supervised tokens, positions, the keys they see, and those they see in a sliding layer."""
    seen_BS = batch.positions_BS + 1
    near_BS = seen_BS if window is None else seen_BS.clamp_max(window[0] + 1)
    return [
        float(batch.loss_mask_BS.sum()),
        batch.tokens_BS.numel(),
        int(seen_BS.sum()),
        int(near_BS.sum()),
    ]


def _forward_step(
    batches: Iterator[Batch],
    model: torch.nn.Module,
    objective: Objective,
    scale: torch.Tensor,
    sources: int,
) -> tuple[torch.Tensor, functools.partial]:
    batch = next(batches)
    loss_BS = model(
        batch.tokens_BS,
        batch.positions_BS,
        batch.attention_mask_B1SS,
        labels=batch.labels_BS,
        packed_seq_params=batch.packed,
    )
    return loss_BS, functools.partial(_loss, batch, objective, scale, sources)


def _loss(
    batch: Batch, objective: Objective, scale: torch.Tensor, sources: int, loss_BS: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """The loss to differentiate; beside it sums by source and of the metrics, and those by row."""
    found = objective.losses(batch, loss_BS.float())
    losses_BS = found.losses_BS
    losses_and_mask_BS2 = torch.stack((losses_BS.detach(), found.counted_BS), -1).double()
    # Padding has no source; its loss and its count are zero.
    source_T = batch.sources_BS.clamp_min(0).reshape(-1)
    sums_D2 = torch.zeros(sources, 2, dtype=torch.float64, device=loss_BS.device)
    sums_D2.index_add_(0, source_T, losses_and_mask_BS2.reshape(-1, 2))
    sums = torch.cat([sums_D2.flatten(), found.sums.detach().double()])
    return losses_BS.sum() * scale, (sums, batch.by_row(losses_BS.detach()).sum(1))
