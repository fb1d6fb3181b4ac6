"""A router whose rows are parameters of their own, one an expert."""

from __future__ import annotations

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.transformer.moe.router import TopKRouter


class RowRouter(TopKRouter):
    """Megatron's TopKRouter with `weight_EH` kept as E parameters of shape [1, H].

    BAR trains the domain expert's row while the anchor's stays as it is, to the bit. A mask on the
    gradient of one [E, H] tensor can't promise that (weight decay moves masked rows) and still
    pays for their optimizer state. With a parameter a row, a frozen row is an ordinary frozen
    parameter. In checkpoints the rows are slices of one tensor, `router.weight`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        weight_EH = self._parameters.pop("weight")
        self.rows = torch.nn.ParameterList(
            torch.nn.Parameter(row_1H.clone()) for row_1H in weight_EH.data.split(1)
        )
        for row_1H in self.rows:
            row_1H.sequence_parallel = self.config.sequence_parallel

    @property
    def weight(self) -> torch.Tensor:
        return torch.cat(tuple(self.rows))

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        replica_id = (0, self.tp_group.rank(), metadata["dp_cp_group"].rank())
        num_prepended = len(sharded_offsets)
        return {
            f"{prefix}rows.{e}": ShardedTensor.from_rank_offsets(
                f"{prefix}weight",
                row_1H,
                *sharded_offsets,
                (num_prepended, e, len(self.rows)),
                replica_id=replica_id,
                prepend_axis_num=num_prepended,
            )
            for e, row_1H in enumerate(self.rows)
        }
