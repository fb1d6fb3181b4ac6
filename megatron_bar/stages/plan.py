"""Needs and costs of one stage."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from megatron_bar.checkpoints.number_types import default_compute_type, type_name
from megatron_bar.costs.amounts import items_of
from megatron_bar.costs.communication import Traffic, step_messages, traffic_of
from megatron_bar.costs.compute import (
    StepTime,
    evaluation_flops,
    evaluation_seconds,
    stage_flops,
    stage_seconds,
    step_time,
)
from megatron_bar.costs.fitting import suggest_evaluation, suggest_training
from megatron_bar.costs.layouts import Choice, ranked_choices
from megatron_bar.costs.machine import Machine
from megatron_bar.costs.memory import Memory, evaluation_memory, saved_bytes, training_memory
from megatron_bar.generation.places import places
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.training import Rlvr, Training
from megatron_bar.rlvr.settings import check_settings
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.known import known_sum
from megatron_bar.training.groups import group_sizes, matching

if TYPE_CHECKING:
    from megatron_bar.stages.evaluate import EvaluateStage
    from megatron_bar.stages.stage import Stage
    from megatron_bar.stages.training_stage import TrainingStage


@dataclass(frozen=True)
class StagePlan:
    """One stage. `steps` and what follows from it are None where the data isn't known."""

    stage: Stage
    model: ModelConfig
    memory: Memory
    training: Training | None = None  # with the type that it computes in
    trainable: int = 0
    open_groups: tuple[str, ...] = ()
    too_big: bool = False
    suggestion: dict[str, Any] | None = None  # keys of the stage, and values in which it would fit
    steps: int | None = None
    flops: float | None = None
    traffic: Traffic | None = None  # of a step
    step: StepTime | None = None  # of an optimizer step; None where an mfu was given
    seconds: float | None = None
    server_gpus: int = 0  # of nodes for servers, beside those of the layout
    checkpoint: int = 0  # bytes on disk that stay
    saved_state: int = 0  # bytes of one state to go on from, while it trains

    @property
    def total(self) -> int:
        return sum(group_sizes(self.model).values())

    @property
    def active(self) -> int:
        """Parameters that a token passes."""
        model = self.model
        if model.num_experts is None:
            return self.total
        idle = model.num_experts - model.active_ffns
        return self.total - idle * group_sizes(model)["expert.0"]

    @property
    def gpus(self) -> int:
        """GPUs of its job."""
        return self.stage.layout.processes + self.server_gpus

    @property
    def gpu_hours(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.gpus / 3600


def ranked_layouts(plan: StagePlan, machine: Machine) -> list[Choice]:
    """The layouts of as many GPUs in which a training stage fits, the fastest first.

    Raises BarError for a stage that doesn't train.
    """
    if plan.training is None:
        raise BarError(f"{plan.stage.name} doesn't train; --layouts is for stages that do")
    return ranked_choices(plan.model, plan.training, plan.open_groups, plan.stage.layout, machine)


def _with_type(settings: Any, stored: torch.dtype) -> Any:
    """`settings` of a stage, with the type that it computes in said."""
    computed = settings.dtype or type_name(default_compute_type(stored))
    return dataclasses.replace(settings, dtype=computed)


def plan_training(
    stage: TrainingStage, model: ModelConfig, machine: Machine, stored: torch.dtype
) -> StagePlan:
    training = _with_type(stage.training, stored)
    layout = stage.layout
    try:
        model.check(layout)
        if isinstance(training, Rlvr):
            check_settings(training, layout)
            list(places(training.rollout_nodes, machine.per_node, training.rollout_options))
    except BarError as error:
        raise BarError(f"{stage.name}: {error}") from None
    groups = group_sizes(model)
    trainable = matching(list(groups), training.trainable, f"{stage.name}: trainable")
    memory = training_memory(model, layout, training, trainable)
    too_big = memory.total > machine.memory_bytes
    steps = stage.steps()
    given = training.expected_mfu or machine.mfu
    step = None if given else step_time(model, layout, training, trainable, machine)
    flops = seconds = None
    if steps is not None:
        flops = stage_flops(model, training, trainable, steps)
        seconds = stage_seconds(model, layout, training, trainable, steps, machine, step)
    open_count = sum(groups[group] for group in trainable)
    return StagePlan(
        stage,
        model,
        memory,
        training,
        open_count,
        tuple(trainable),
        too_big=too_big,
        steps=steps,
        flops=flops,
        suggestion=(
            suggest_training(model, layout, training, trainable, machine.memory_bytes)
            if too_big
            else None
        ),
        traffic=traffic_of(step_messages(model, layout, training, trainable), machine),
        step=step,
        seconds=seconds,
        server_gpus=stage.server_nodes * machine.per_node,
        checkpoint=stored.itemsize * sum(groups.values()),
        saved_state=saved_bytes(training, open_count),
    )


def plan_evaluation(
    stage: EvaluateStage, model: ModelConfig, machine: Machine, stored: torch.dtype
) -> StagePlan:
    settings = _with_type(stage.asking, stored)
    layout = stage.layout.fitted(model.num_experts)
    try:
        model.check(layout)
    except BarError as error:
        raise BarError(f"{stage.name}: {error}") from None
    memory = evaluation_memory(model, layout, settings)
    too_big = memory.total > machine.memory_bytes
    plan = StagePlan(
        dataclasses.replace(stage, layout=layout),
        model,
        memory,
        too_big=too_big,
        suggestion=suggest_evaluation(model, layout, settings, machine.memory_bytes)
        if too_big
        else None,
    )
    items = items_of(source for sources in stage.tasks.values() for source in sources)
    if items is None:
        return plan
    answers = items * settings.samples
    return dataclasses.replace(
        plan,
        flops=evaluation_flops(model, settings, answers),
        seconds=evaluation_seconds(model, layout, settings, answers, machine),
    )


def plan_conversion(
    stage: Stage, model: ModelConfig, machine: Machine, stored: torch.dtype
) -> StagePlan:
    """Conversions stream: a few tensors in memory, and time by what they read and write."""
    total = sum(group_sizes(model).values())
    largest = 4 * model.padded_vocab_size(1) * model.hidden_size
    size = stored.itemsize * total
    return StagePlan(
        stage,
        model,
        Memory(0, buffers=3 * largest),
        flops=0.0,
        seconds=2 * size / machine.checkpoint_rate,
        checkpoint=size,
    )


def plan_combining(
    stage: Stage, model: ModelConfig, machine: Machine, stored: torch.dtype, passes: int
) -> StagePlan:
    """A conversion that reads what its inputs share, all but experts and routers, `passes` times.

    Of a model without experts that is all. It is read in bands of rows, so no pass needs memory.
    """
    whole = plan_conversion(stage, model, machine, stored)
    shared = sum(
        size
        for group, size in group_sizes(model).items()
        if not group.startswith(("expert.", "router."))
    )
    # One model's are in what a conversion reads anyway.
    more = (len(stage.inputs) * passes - 1) * shared * stored.itemsize
    seconds = known_sum([whole.seconds, more / machine.checkpoint_rate])
    return dataclasses.replace(whole, seconds=seconds)


def no_cost(stage: Stage, model: ModelConfig) -> StagePlan:
    """The plan of a stage that only reads what others left."""
    return StagePlan(stage, model, Memory(0, buffers=0), flops=0.0, seconds=0.0)
