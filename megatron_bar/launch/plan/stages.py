"""What each stage of a recipe needs and costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megatron_bar.checkpoints.number_types import default_compute_type, type_name
from megatron_bar.data.batches import planned_steps
from megatron_bar.data.paths import files_of
from megatron_bar.data.sources import open_source
from megatron_bar.launch.check import stage_models
from megatron_bar.launch.plan.compute import (
    Machine,
    evaluation_flops,
    evaluation_seconds,
    stage_flops,
    stage_seconds,
)
from megatron_bar.launch.plan.fitting import evaluation_cure, training_cure
from megatron_bar.launch.plan.memory import (
    Memory,
    evaluation_memory,
    row_length,
    saved_bytes,
    training_memory,
)
from megatron_bar.launch.plan.traffic import Traffic, step_traffic
from megatron_bar.launch.starts import dense_model, dense_type
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.presets import PRESETS
from megatron_bar.recipe.graph import TRAINING_KINDS, Stage
from megatron_bar.recipe.methods import stage_graph
from megatron_bar.recipe.schema import Recipe, Rlvr, Source, Training
from megatron_bar.rlvr.settings import check_settings
from megatron_bar.runtime.errors import BarError
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
    too_big: bool = False
    cure: dict[str, Any] | None = None  # keys of the stage, and values in which it would fit
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


def length_warnings(plans: Sequence[StagePlan]) -> list[str]:
    """A line for each stage whose rows are longer than what the model was made for."""
    told = []
    for plan in plans:
        if plan.stage.kind in TRAINING_KINDS:
            warning = plan.model.length_warning(row_length(training_of(plan.stage)))
            told += [f"{plan.stage.name}: {warning}"] if warning else []
    return told


def plan_stages(recipe: Recipe, model: ModelConfig, machine: Machine) -> list[StagePlan]:
    """A plan of every stage, in the graph's order.

    Raises BarError for a layout that can't hold its model and for unknown parameter groups.
    """
    models = stage_models(recipe, model)
    stored = dense_type(recipe)  # of all checkpoints of a run (`number_types`)
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
        too_big=too_big, steps=steps, flops=flops,
        cure=training_cure(model, layout, training, trainable, machine.memory) if too_big else None,
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
        cure=evaluation_cure(model, layout, settings, machine.memory) if too_big else None,
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
    """How many it asks; None where a file isn't here and its source has no count."""
    counts = [_records(Source(**source)) for entries in stage.settings["tasks"].values()
              for source in entries]
    return None if None in counts else sum(counts)


def _records(source: Source) -> int | None:
    """How many a source holds, or its count."""
    if source.count is not None:
        return source.count
    try:
        return len(open_source(source, seed=0, texts=False))
    except BarError:
        return None


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
    """From the bytes of the files."""
    total = 0.0
    for source in sources:
        size = None if source.path is None else _bytes(source.path)
        if size is None:
            return None
        if source.count is not None:
            records = _records(dataclasses.replace(source, count=None))
            if records is None:
                return None
            size *= min(1.0, source.count / records)
        total += source.repeat * size / _FILE_BYTES_PER_TOKEN[kind]
    return total


def _bytes(path: str) -> int | None:
    """Of the files that a source's `path` names; None where there are none."""
    files = files_of(path)
    return sum(file.stat().st_size for file in files) if files else None
