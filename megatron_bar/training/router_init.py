"""Initial router rows, where they aren't their branches' own.

Shapes: S sequence, B batch, T tokens, H hidden, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_bar.checkpoints.branch import router_rows
from megatron_bar.data.batch import to_batch
from megatron_bar.data.packing import PackedDocuments
from megatron_bar.models.language_model import LanguageModel
from megatron_bar.models.router import RowRouter, routers
from megatron_bar.runtime.errors import BarError
from megatron_bar.training.step import forward_backward

_ROWS = 32  # of each expert's data that its centroid is the mean of
# Apart from the seeds that branches draw their rows with, or the first rows would be theirs.
_SEEDS_APART = 7919


def init_at_random(model: LanguageModel, seed: int) -> None:
    """Rows as a branch draws them, a function of `seed` and the layer alone."""
    for router in routers(model):
        weight_EH = router.weight
        rows_EH = router_rows(weight_EH.shape, seed + _SEEDS_APART, router.layer_number - 1)
        _set_rows(router, rows_EH)


@torch.no_grad()
def init_at_centroids(
    model: LanguageModel,
    rows: PackedDocuments,
    owners: Sequence[int],
    experts: Sequence[str],
    pad_id: int,
) -> None:
    """Rows that point at the mean input of their layer's router over their own expert's data.

    `owners` says which expert each source of `rows` belongs to. The means are those of the model as
    it was loaded. Rows of a layer are as long as its stacked ones are on average: hidden states are
    so long that as rows they would decide every softmax by themselves.

    Raises BarError if there is no token of an expert's data.
    """
    owner_D = torch.tensor(owners)
    chosen = _spread(rows, owner_D)
    size = parallel_state.get_data_parallel_world_size()
    rank = parallel_state.get_data_parallel_rank()
    # Ranks that share experts step together, so all take as many rows; those that fill up the last
    # step don't count.
    filled = np.resize(chosen, -(-len(chosen) // size) * size)
    owner_BS = torch.empty(0)
    sums = {
        router: torch.zeros(
            len(experts),
            model.config.hidden_size + 1,
            dtype=torch.float64,
            device=torch.cuda.current_device(),
        )
        for router in routers(model)
    }

    def add(router: RowRouter, inputs: tuple) -> None:
        x_TH = inputs[0].flatten(0, 1).double()
        owner_T = owner_BS.t()
        if router.config.sequence_parallel:
            tensor = parallel_state.get_tensor_model_parallel_world_size()
            owner_T = owner_T.chunk(tensor)[parallel_state.get_tensor_model_parallel_rank()]
        owner_T = owner_T.reshape(-1).to(x_TH.device)
        counted = torch.cat([x_TH, torch.ones_like(x_TH[:, :1])], dim=1)[owner_T >= 0]
        sums[router].index_add_(0, owner_T[owner_T >= 0], counted)

    model.eval()
    handles = [router.register_forward_pre_hook(add) for router in sums]
    for place in range(rank, len(filled), size):
        batch = to_batch(rows.take([filled[place]]), pad_id)
        sources_BS = batch.context_part().sources_BS
        hidden_BS = (sources_BS < 0) | (place >= len(chosen))
        owner_BS = torch.where(hidden_BS, -1, owner_D[sources_BS])
        forward_backward(model, [batch], len(owners), train=False)
    for handle in handles:
        handle.remove()
    for router, sums_EX in sums.items():
        # Ranks that hold the same tokens count them all alike, which leaves the means as they are.
        dist.all_reduce(
            sums_EX,
            group=parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True),
        )
        if (sums_EX[:, -1] == 0).any():
            missing = experts[int((sums_EX[:, -1] == 0).nonzero()[0])]
            raise BarError(f"start centroids found no token of expert {missing}'s data")
        centroids_EH = sums_EX[:, :-1] / sums_EX[:, -1:]
        length = router.weight.double().norm(dim=1).mean()
        _set_rows(router, length * torch.nn.functional.normalize(centroids_EH))


def _spread(rows: PackedDocuments, owner_D: torch.Tensor) -> np.ndarray:
    """Up to `_ROWS` rows for each expert, spread over those that hold its data."""
    row_of = np.repeat(np.arange(len(rows)), np.diff(rows.starts_R))
    owner_of = owner_D.numpy()[rows.source_D]
    chosen = []
    for expert in owner_D.unique().tolist():
        its = np.unique(row_of[owner_of == expert])
        count = min(_ROWS, len(its))
        chosen.append(its[np.linspace(0, len(its) - 1, count).round().astype(int)])
    return np.unique(np.concatenate(chosen))


def _set_rows(router: RowRouter, rows_EH: torch.Tensor) -> None:
    for row_H, new_H in zip(router.rows, rows_EH):
        row_H.data.copy_(new_H)
