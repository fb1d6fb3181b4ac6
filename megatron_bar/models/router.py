"""A router whose rows are parameters of their own, one an expert."""

from __future__ import annotations

import itertools
from collections.abc import Collection

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.transformer.moe.router import TopKRouter


class RowRouter(TopKRouter):
    """Megatron's TopKRouter with `weight_EH` kept as E parameters of shape [H].

    BAR trains the domain expert's row while the anchor's stays as it is, to the bit. A mask on the
    gradient of one [E, H] tensor can't promise that (weight decay moves masked rows) and still
    pays for their optimizer state. With a parameter a row, a frozen row is an ordinary frozen
    parameter. In checkpoints the rows are slices of one tensor, `router.weight`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        weight_EH = self._parameters.pop("weight")
        self.rows = torch.nn.ParameterList(
            torch.nn.Parameter(row_H.to(torch.cuda.current_device(), copy=True))
            for row_H in weight_EH.data
        )
        for row_H in self.rows:
            row_H.sequence_parallel = self.config.sequence_parallel
        self.left_out: list[int] = []  # see `leave_out`

    @property
    def weight(self) -> torch.Tensor:
        return torch.stack(tuple(self.rows))

    def gating(self, x_SBH: torch.Tensor) -> torch.Tensor:
        """`x_SBH -> logits_SBE`, in fp32. Rows that are frozen cost no gradient of their own."""
        x_SBH = x_SBH.float()
        logits_SBE = torch.cat(
            [
                torch.nn.functional.linear(x_SBH, torch.stack(tuple(rows)).float())
                for _, rows in itertools.groupby(self.rows, key=lambda row_H: row_H.requires_grad)
            ],
            dim=-1,
        )
        if self.left_out:
            logits_SBE[..., self.left_out] = -torch.inf
        return logits_SBE

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        replica_id = (0, self.tp_group.rank(), metadata["dp_cp_group"].rank())
        axis = len(sharded_offsets)
        return {
            f"{prefix}rows.{e}": ShardedTensor.from_rank_offsets(
                f"{prefix}weight",
                row_H,
                *sharded_offsets,
                (axis, e, len(self.rows)),
                replica_id=replica_id,
                prepend_axis_num=axis + 1,
            )
            for e, row_H in enumerate(self.rows)
        }


def routers(model: torch.nn.Module) -> list[RowRouter]:
    """The routers of the layers on this rank, in their order."""
    return [module for module in model.modules() if isinstance(module, RowRouter)]


def leave_out(model: torch.nn.Module, experts: Collection[int]) -> None:
    """Give the experts of these global ids no part in anything from now on; none restores all.

    Their logits are masked before the softmax, so the others share their probability as they do in
    a model that was merged without them. They are still computed, with weight 0.
    """
    for router in routers(model):
        router.left_out = sorted(experts)
