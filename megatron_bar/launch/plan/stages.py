"""What each stage of a recipe needs and costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_bar.checkpoints.hf import stored_type
from megatron_bar.checkpoints.number_types import compute_type, default_compute_type, type_name
from megatron_bar.data.batches import planned_steps
from megatron_bar.launch.check import TRAINING_KINDS, dense_model, stage_models
from megatron_bar.launch.plan.compute import (
    Machine,
    evaluation_flops,
    evaluation_seconds,
    stage_flops,
    stage_seconds,
)
from megatron_bar.launch.plan.memory import (
    Memory,
    evaluation_memory,
    nearest_evaluation_fit,
    nearest_fit,
    saved_bytes,
    training_memory,
)
from megatron_bar.launch.plan.traffic import Traffic, step_traffic
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.presets import PRESETS, preset_named
from megatron_bar.recipe.graph import Stage
from megatron_bar.recipe.methods import stage_graph
from megatron_bar.recipe.schema import Recipe, Rlvr, Source, Training
from megatron_bar.rlvr.settings import check_settings
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.context import evaluation_of, parts_of, training_of
from megatron_bar.training.groups import group_sizes, matching

_CONVERSIONS = ("import", "branch", "adopt", "merge", "average", "stack", "export")
# Of text as OLMo-2's tokenizer cuts it; conversations carry JSON around it.
_FILE_BYTES_PER_TOKEN = {"midtrain": 4.5, "sft": 5.0, "route": 5.0}


@dataclass(frozen=True)
class StagePlan:
    """One stage. `steps` and what follows from it are None where the data isn't known."""

    stage: Stage
    model: ModelConfig
    memory: Memory
    training: Training | None = None  # with the type that it computes in
    trainable: int = 0
    fits: Layout | None = None  # the nearest layout that fits, where this one doesn't
    too_big: bool = False
    steps: int | None = None
    flops: float | None = None
    traffic: Traffic | None = None  # of a step
    seconds: float | None = None
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
        idle = model.num_experts - model.experts_per_token
        return self.total - idle * group_sizes(model)["expert.0"]

    @property
    def gpu_hours(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.stage.layout.processes / 3600


def planned_model(recipe: Recipe, name: str | None) -> ModelConfig:
    """The dense model: by preset, from the anchor's folder, or by a published folder's name.

    Raises BarError if none of these tells.
    """
    if name is not None:
        if name not in PRESETS:
            raise BarError(f"--model {name}: unknown; there are {', '.join(PRESETS)}")
        return PRESETS[name]
    if recipe.pretrain is None and not Path(recipe.anchor).is_dir():
        known = preset_named(Path(recipe.anchor).name)
        if known is None:
            raise BarError(f"{recipe.anchor} isn't here and its name tells no size; give --model "
                           f"with one of {', '.join(PRESETS)}")
        return known
    return dense_model(recipe)


def plan_stages(recipe: Recipe, model: ModelConfig, machine: Machine) -> list[StagePlan]:
    """A plan of every stage, in the graph's order.

    Raises BarError for a layout that can't hold its model and for unknown parameter groups.
    """
    models = stage_models(recipe, model)
    stored = _stored_type(recipe)
    plans = []
    for stage in stage_graph(recipe):
        held = models[stage.name]
        if stage.kind in TRAINING_KINDS:
            plans.append(_plan_training(stage, held, machine, stored))
        elif stage.kind == "evaluate":
            plans.append(_plan_evaluation(stage, held, machine, stored))
        else:
            plans.append(_plan_other(stage, held, machine, stored))
    return plans


def _stored_type(recipe: Recipe) -> torch.dtype:
    """What all checkpoints of a run are stored in: the anchor's type (`number_types`).

    A model whose folder isn't here is taken to be in bfloat16, as published ones are.
    """
    if recipe.pretrain is not None:
        return compute_type(recipe.pretrain.training.dtype, start=None)
    return stored_type(recipe.anchor) if Path(recipe.anchor).is_dir() else torch.bfloat16


def _with_type(settings: Any, stored: torch.dtype) -> Any:
    """`settings` of a stage, with the type that it computes in said."""
    computed = settings.dtype or type_name(default_compute_type(stored))
    return dataclasses.replace(settings, dtype=computed)


def _plan_training(
    stage: Stage, model: ModelConfig, machine: Machine, stored: torch.dtype
) -> StagePlan:
    training = _with_type(training_of(stage), stored)
    layout = stage.layout
    try:
        model.check(layout)
        if isinstance(training, Rlvr):
            check_settings(training, layout)
    except BarError as error:
        raise BarError(f"{stage.name}: {error}") from None
    groups = group_sizes(model)
    trainable = matching(list(groups), training.trainable, f"{stage.name}: trainable")
    memory = training_memory(model, layout, training, trainable)
    too_big = memory.total > machine.memory
    steps = _steps(stage, training)
    flops = seconds = None
    if steps is not None:
        flops = stage_flops(model, training, trainable, steps)
        seconds = stage_seconds(model, layout, training, trainable, steps, machine)
    open_count = sum(groups[group] for group in trainable)
    return StagePlan(
        stage, model, memory, training, open_count,
        fits=nearest_fit(model, layout, training, trainable, machine.memory) if too_big else None,
        too_big=too_big, steps=steps, flops=flops,
        traffic=step_traffic(model, layout, training, trainable, machine.per_node),
        seconds=seconds, checkpoint=stored.itemsize * sum(groups.values()),
        saved_state=saved_bytes(training, open_count),
    )


def _plan_evaluation(
    stage: Stage, model: ModelConfig, machine: Machine, stored: torch.dtype
) -> StagePlan:
    settings = _with_type(evaluation_of(stage), stored)
    layout = stage.layout.fitted(model.num_experts)
    try:
        model.check(layout)
    except BarError as error:
        raise BarError(f"{stage.name}: {error}") from None
    memory = evaluation_memory(model, layout, settings)
    too_big = memory.total > machine.memory
    plan = StagePlan(
        dataclasses.replace(stage, layout=layout), model, memory, too_big=too_big,
        fits=nearest_evaluation_fit(model, layout, settings, machine.memory) if too_big else None,
    )
    items = _items(stage)
    if items is None:
        return plan
    answers = items * settings.samples
    return dataclasses.replace(
        plan, flops=evaluation_flops(model, settings, answers),
        seconds=evaluation_seconds(model, layout, settings, answers, machine),
    )


def _plan_other(
    stage: Stage, model: ModelConfig, machine: Machine, stored: torch.dtype
) -> StagePlan:
    """Conversions stream: a few tensors in memory, and time by what they read and write."""
    total = sum(group_sizes(model).values())
    if stage.kind == "report":
        return StagePlan(stage, model, Memory(0, buffers=0), flops=0.0, seconds=0.0)
    assert stage.kind in _CONVERSIONS, stage.kind
    largest = 4 * model.padded_vocab_size(1) * model.hidden_size
    size = stored.itemsize * total
    return StagePlan(stage, model, Memory(0, buffers=3 * largest), flops=0.0,
                     seconds=2 * size / machine.checkpoint_rate, checkpoint=size)


def _items(stage: Stage) -> int | None:
    counts = [source["count"] for entries in stage.settings["tasks"].values()
              for source in entries]
    return None if None in counts else sum(counts)


def _steps(stage: Stage, training: Training) -> int | None:
    """As the recipe says, or from the size of the data's files; None if they aren't here."""
    if (parts := parts_of(stage)) != [stage]:
        steps = [_steps(part, training_of(part)) for part in parts]
        return None if None in steps else sum(steps)
    if training.epochs is None:
        return planned_steps(training, rows_per_epoch=0)
    if stage.kind == "route":
        sources = {(s["path"], s["hub"]): Source(**s)
                   for entries in stage.settings["sampled"].values() for s in entries}
        tokens = _tokens(list(sources.values()), "route")
        tokens = None if tokens is None else tokens * stage.settings["fraction"]
    else:
        tokens = _tokens(training.data, stage.kind)
    if tokens is None:
        return None
    return planned_steps(training, math.ceil(tokens / training.sequence_length))


def _tokens(sources: Sequence[Source], kind: str) -> float | None:
    """From the bytes of the files, for sources that are taken whole."""
    total = 0.0
    for source in sources:
        path = None if source.path is None else Path(source.path)
        if path is None or not path.is_file() or source.count is not None:
            return None
        total += source.repeat * path.stat().st_size / _FILE_BYTES_PER_TOKEN[kind]
    return total
