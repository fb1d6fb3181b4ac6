"""`dpo`: a domain's expert learns from preferences, after SFT and before RLVR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_bar.recipe.fields import PAIRS
from megatron_bar.recipe.training import Dpo
from megatron_bar.runtime.known import known_sum
from megatron_bar.stages.train import AdaptStage

if TYPE_CHECKING:
    from megatron_bar.models.config import ModelConfig
    from megatron_bar.runtime.faults import Faults
    from megatron_bar.stages.context import Context


@dataclass(frozen=True, kw_only=True)
class DpoStage(AdaptStage):
    """Learns to prefer the chosen answer of a pair to the rejected one."""

    training: Dpo

    KIND = "dpo"
    LABEL = "DPO"
    FORM = PAIRS

    def check(self, model: ModelConfig, faults: Faults) -> None:
        super().check(model, faults)
        if self.layout.context > 1:
            faults.add(
                f"layout.context is {self.layout.context}, and a pair's answers aren't "
                "shared by ranks; leave it out of this stage's layout",
                self.name,
            )
        if self.training.validation:
            faults.add(
                "validation measures the loss of tokens, which dpo doesn't lower; leave it out",
                self.name,
            )

    def file_rows(self) -> int | None:
        """The pairs of an epoch, each of which is a row."""
        from megatron_bar.costs.amounts import items_of

        held = [(items_of([source]), source.repeat) for source in self.sources()]
        return known_sum(None if pairs is None else pairs * repeat for pairs, repeat in held)

    def run(self, context: Context) -> dict[str, Any]:
        from megatron_bar.stages.work.dpo import train_on_preferences

        return train_on_preferences(context)
