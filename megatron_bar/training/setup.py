"""A model with the parameters that a stage opens, and what trains them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_bar.checkpoints.model_io import load_model
from megatron_bar.checkpoints.number_types import compute_type, stored_types, type_name
from megatron_bar.models.language_model import LanguageModel, build_model
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.console import console, say
from megatron_bar.runtime.distributed import is_main
from megatron_bar.training.budget import Budget, stage_budget
from megatron_bar.training.groups import check_scales, freeze, group_sizes, matching
from megatron_bar.training.model_run import ModelRun
from megatron_bar.training.optimizer import build_optimizer, build_schedule, wrap
from megatron_bar.training.overrides import transformer_overrides
from megatron_bar.training.parts import parts_in_use

# What to do to a model that was loaded, before it trains; every rank calls it.
Initializer = Callable[[LanguageModel], None]


@dataclass(frozen=True)
class TrainingSetup:
    """One model in training, on this rank."""

    model: LanguageModel
    wrapped: DistributedDataParallel
    optimizer: MegatronOptimizer
    schedule: OptimizerParamScheduler
    trainable: list[str]
    budget: Budget
    dtype: torch.dtype  # that it computes in


def set_up(
    run: ModelRun,
    training: Training,
    updates: int,
    initialize: Initializer | None = None,
    load_balancing_loss: float = 0.0,
) -> TrainingSetup:
    """Load the run's model from its start (random weights if None), freeze, make the optimizer.

    `updates` is how many optimizer steps the schedule spans, `load_balancing_loss` the coefficient
    of the loss of that name. Says what trains and what it costs.

    Raises BarError for a pattern that matches no group, and a checkpoint that doesn't fit: a tensor
    that is missing, or whose shape or type the stage couldn't give back.
    """
    sizes = group_sizes(run.config)
    trainable = matching(list(sizes), training.trainable, f"{run.label}: trainable")
    check_scales(list(sizes), training.lr_scale, f"{run.label}: lr_scale")
    dtype = compute_type(training.dtype, run.start)
    model = build_model(
        run.config,
        run.layout,
        dtype,
        training.router_z_loss,
        overrides=transformer_overrides(training),
        load_balancing_loss=load_balancing_loss,
    )
    if run.start is not None:
        stored_types(run.start)
        load_model(model, run.start)
    if initialize is not None:
        initialize(model)
    freeze(model, run.config, trainable)
    wrapped = wrap(model, training)
    optimizer = build_optimizer(wrapped, training)
    budget = stage_budget(sizes, trainable, wrapped, optimizer)
    if is_main():
        say(f"{run.label}: {updates} updates in {type_name(dtype)}, layout {run.layout}")
        say(f"{run.label}: {parts_in_use(model, optimizer)}")
        console.print(budget.table())
    schedule = build_schedule(optimizer, training, updates)
    return TrainingSetup(model, wrapped, optimizer, schedule, trainable, budget, dtype)
