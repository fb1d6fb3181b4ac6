"""Parameters that a stage trains, and the bytes that costs, before its first step."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from rich.table import Table

from megatron_bar.runtime.disk import readable
from megatron_bar.runtime.distributed import of_all_ranks
from megatron_bar.training.groups import group_of
from megatron_bar.training.optimizer_state import stepped_tensors

PADDING = "padding"
_MOMENTS = 2  # of AdamW, for each element that this rank steps


@dataclass
class RankBudget:
    """One rank's bytes by group, read off its buffers and the optimizer's shards."""

    gradients: dict[str, int] = field(default_factory=dict)
    optimizer: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.gradients.values()) + sum(self.optimizer.values())


def rank_budget(model: DistributedDataParallel, optimizer: MegatronOptimizer) -> RankBudget:
    """This rank's gradient buffers and optimizer state, which AdamW allocates at its first step.

    Gradient buffers are padded so that data-parallel ranks can share them; that is a group of its
    own. Optimizer state is two moments and, under bf16, the fp32 weights.
    """
    budget = RankBudget()
    for buffer in model.buffers + model.expert_parallel_buffers:
        used = 0
        for parameter in buffer.params:
            size = parameter.main_grad.nbytes
            _add(budget.gradients, group_of(parameter), size)
            used += size
        _add(budget.gradients, PADDING, buffer.grad_data.nbytes - used)
    for part in optimizer.chained_optimizers:
        for parameter, stepped, is_copy in stepped_tensors(part):
            size = stepped.nbytes * (_MOMENTS + is_copy)
            _add(budget.optimizer, group_of(parameter), size)
    return budget


def _add(sizes: dict[str, int], group: str, size: int) -> None:
    if size:
        sizes[group] = sizes.get(group, 0) + size


@dataclass(frozen=True)
class Budget:
    """Counts of the parameters a stage trains and freezes, by group, and what each rank pays."""

    sizes: dict[str, int]
    trainable: tuple[str, ...]
    ranks: tuple[RankBudget, ...]

    @property
    def trainable_count(self) -> int:
        return sum(self.sizes[group] for group in self.trainable)

    @property
    def frozen_count(self) -> int:
        return sum(self.sizes.values()) - self.trainable_count

    def table(self) -> Table:
        """Bytes are those of the rank that has most of them."""
        columns = ("group", "parameters", "", "gradients/rank", "optimizer/rank")
        table = Table(*columns, title=None, box=None)
        for column in table.columns[1:]:
            column.justify = "right"
        for group, size in self.sizes.items():
            state = "trains" if group in self.trainable else "frozen"
            table.add_row(
                group,
                f"{size:,}",
                state,
                _bytes(self._most("gradients", group)),
                _bytes(self._most("optimizer", group)),
            )
        if padding := self._most("gradients", PADDING):
            table.add_row(PADDING, "", "", _bytes(padding), _bytes(0))
        most = max(self.ranks, key=lambda rank: rank.total)
        table.add_row(
            "all",
            f"{sum(self.sizes.values()):,}",
            f"{self.trainable_count:,} train, {self.frozen_count:,} frozen",
            _bytes(sum(most.gradients.values())),
            _bytes(sum(most.optimizer.values())),
        )
        return table

    def _most(self, kind: str, group: str) -> int:
        return max(getattr(rank, kind).get(group, 0) for rank in self.ranks)


def _bytes(size: int) -> str:
    return readable(size) if size else "-"


def stage_budget(
    sizes: dict[str, int],
    trainable: list[str],
    model: DistributedDataParallel,
    optimizer: MegatronOptimizer,
) -> Budget:
    """The budgets of all ranks. Every rank calls this."""
    return Budget(sizes, tuple(trainable), tuple(of_all_ranks(rank_budget(model, optimizer))))
