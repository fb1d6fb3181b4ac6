"""Common parts of stages that train: their settings, what they ask of a model, their cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from megatron_bar.recipe.fields import TEMPLATE, key
from megatron_bar.recipe.training import Source, Training
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.stage import Stage

if TYPE_CHECKING:
    import torch

    from megatron_bar.costs.machine import Machine
    from megatron_bar.models.config import ModelConfig
    from megatron_bar.runtime.faults import Faults
    from megatron_bar.runtime.layout import Layout
    from megatron_bar.stages.plan import StagePlan

EVERYTHING = ("*",)

AnyTraining = TypeVar("AnyTraining", bound=Training)


def with_groups(training: AnyTraining, groups: Sequence[str]) -> AnyTraining:
    """`training` with the parameter groups that train by default where the recipe names none."""
    return dataclasses.replace(training, trainable=training.trainable or list(groups))


@dataclass(frozen=True, kw_only=True)
class TrainingStage(Stage):
    """A stage that trains a model from its input `start`."""

    training: Training
    seed: int
    chat_template: str | None = key(None, contents=TEMPLATE)

    ON_GPU = True

    def sources(self) -> list[Source]:
        """Every source that it trains on, once for each time that it is mixed in."""
        return list(self.training.data)

    def trainings(self) -> Iterator[Training]:
        """Its own training, or those of domains that it trains on together."""
        yield self.training

    def length_warning(self, model: ModelConfig) -> str | None:
        """A warning about more tokens in a row than `model` knows positions, else None."""
        return model.length_warning(self.training.sequence_length)

    def check(self, model: ModelConfig, faults: Faults) -> None:
        from megatron_bar.data.batches import check_length, check_shares
        from megatron_bar.training.frozen_fp8 import check_fp8
        from megatron_bar.training.groups import check_scales, group_sizes, matching
        from megatron_bar.training.overrides import check_overrides

        training = self.training
        with faults.of(self.name):
            check_layout(model, self.layout)
        batch, micro_batch = training.global_batch_size, training.micro_batch_size
        if batch > 0 < micro_batch:  # else reported among the values
            with faults.of(self.name):
                check_shares(batch, self.layout.data, micro_batch)
        with faults.of(self.name):
            check_length(training.sequence_length, self.layout.context)
        groups = list(group_sizes(model))
        with faults.of():
            opened = matching(groups, training.trainable, f"{self.name}: trainable")
            check_fp8(training, model, self.layout, opened, self.name)
        with faults.of():
            check_scales(groups, training.lr_scale, f"{self.name}: lr_scale")
        with faults.of():
            check_overrides(training, model, self.name)

    def check_sources(self, faults: Faults) -> None:
        from megatron_bar.data.mixture import check_mixture

        for mixed in [*(one.data for one in self.trainings()), self.training.validation]:
            with faults.of(self.name):
                check_mixture(mixed)

    def check_installed(self, faults: Faults) -> None:
        from megatron_bar.training.trackers import missing_trackers

        for fault in missing_trackers(self.training):
            faults.add(fault, self.name)

    def prepare(self) -> None:
        if self.training.deterministic:
            from megatron_bar.runtime.determinism import compute_deterministically

            compute_deterministically()

    def steps(self) -> int | None:
        """Number of steps, by the recipe or the data's files; None if they aren't here."""
        from megatron_bar.data.batches import planned_steps

        return planned_steps(self.training, rows_per_epoch=0)

    def plan(self, model: ModelConfig, machine: Machine, stored: torch.dtype) -> StagePlan:
        from megatron_bar.stages.plan import plan_training

        return plan_training(self, model, machine, stored)

    def _recipe_key(self, first: str, *rest: str | int) -> Sequence[str | int]:
        if first == "training":
            return *self.recipe_section.split("."), *rest
        return super()._recipe_key(first, *rest)

    @property
    def recipe_section(self) -> str:
        return f"domains.{self.domain or '*'}.{self.KIND}"


def check_layout(model: ModelConfig, layout: Layout) -> None:
    """Raise BarError, with the keys that say another, if `layout` can't hold `model`."""
    try:
        model.check(layout)
    except BarError as error:
        raise BarError(
            f"{error}; a stage's own layout, such as route.training.layout or "
            "evaluate.layout, goes before the recipe's"
        ) from None
