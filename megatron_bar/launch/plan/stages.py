"""What each stage of a recipe needs and costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.data.batches import planned_steps
from megatron_bar.launch.check import TRAINING_KINDS, stage_models
from megatron_bar.launch.plan.compute import (
    Machine,
    evaluation_flops,
    evaluation_seconds,
    stage_flops,
    stage_seconds,
)
from megatron_bar.launch.plan.memory import (
    WIDTH,
    Memory,
    evaluation_memory,
    nearest_evaluation_fit,
    nearest_fit,
    saved_bytes,
    training_memory,
)
from megatron_bar.launch.plan.traffic import Traffic, step_traffic
from megatron_bar.launch.starts import dense_model
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.presets import PRESETS
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
    """The dense model: by preset, or as the recipe tells. Raises BarError if neither does."""
    if name is not None:
        if name not in PRESETS:
            raise BarError(f"--model {name}: unknown; there are {', '.join(PRESETS)}")
        return PRESETS[name]
    try:
        return dense_model(recipe)
    except BarError as error:
        raise BarError(f"{error}; or give --model with one of {', '.join(PRESETS)}") from None


def plan_stages(recipe: Recipe, model: ModelConfig, machine: Machine) -> list[StagePlan]:
    """A plan of every stage, in the graph's order.

    Raises BarError for a layout that can't hold its model and for unknown parameter groups.
    """
    models = stage_models(recipe, model)
    plans = []
    for stage in stage_graph(recipe):
        held = models[stage.name]
        if stage.kind in TRAINING_KINDS:
            plans.append(_plan_training(stage, held, machine))
        elif stage.kind == "evaluate":
            plans.append(_plan_evaluation(stage, held, machine))
        else:
            plans.append(_plan_other(stage, held, machine))
    return plans


def _plan_training(stage: Stage, model: ModelConfig, machine: Machine) -> StagePlan:
    training = training_of(stage)
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
        stage, model, memory, open_count,
        fits=nearest_fit(model, layout, training, trainable, machine.memory) if too_big else None,
        too_big=too_big, steps=steps, flops=flops,
        traffic=step_traffic(model, layout, training, trainable, machine.per_node),
        seconds=seconds, checkpoint=WIDTH[training.dtype] * sum(groups.values()),
        saved_state=saved_bytes(training, open_count),
    )


def _plan_evaluation(stage: Stage, model: ModelConfig, machine: Machine) -> StagePlan:
    settings, layout = evaluation_of(stage), stage.layout.fitted(model.num_experts)
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


def _plan_other(stage: Stage, model: ModelConfig, machine: Machine) -> StagePlan:
    """Conversions stream: a few tensors in memory, and time by what they read and write."""
    total = sum(group_sizes(model).values())
    if stage.kind == "report":
        return StagePlan(stage, model, Memory(0, buffers=0), flops=0.0, seconds=0.0)
    assert stage.kind in _CONVERSIONS, stage.kind
    largest = 4 * model.padded_vocab_size(1) * model.hidden_size
    size = 4 * total
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
