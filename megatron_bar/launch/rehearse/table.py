"""The result of a rehearsal, stage by stage, beside what the real run needs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from rich.table import Table

from megatron_bar.launch.rehearse.fold import lost_kinds
from megatron_bar.launch.rehearse.rehearsal import Rehearsed
from megatron_bar.methods.graph import Stage
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.training import Rlvr, Training
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.evaluate import EvaluateStage
from megatron_bar.stages.plan import StagePlan
from megatron_bar.stages.training_stage import TrainingStage


def rehearsal_table(rehearsed: Rehearsed) -> Table:
    """A line a stage; what the real one needs is the plan's, for the machine that it assumes."""
    columns = "stage", "rehearsed as", "showed", "the real one needs", "not rehearsed"
    table = Table(*columns, box=None)
    for plan, stage in zip(rehearsed.plans, rehearsed.stages, strict=True):
        table.add_row(
            stage.name,
            _as(stage),
            "\n".join(rehearsed.showed.get(stage.name, [])),
            _needs(plan),
            "; ".join(_left_out(plan, stage)),
        )
    return table


def closing() -> str:
    """The closing lines: what no stage's line repeats."""
    here = "" if torch.cuda.is_available() else "GPU kernels and NCCL (this was a CPU), "
    return (
        f"Not rehearsed at all: {here}several nodes, the real model's quality and speed, and "
        "examples that weren't among those read."
    )


def _as(stage: Stage) -> str:
    layout = stage.layout
    words = [str(layout) if layout.processes > 1 else "1 process"]
    if isinstance(stage, TrainingStage):
        training = stage.training
        words.append(f"{training.steps} x {training.global_batch_size} rows of {_row(training)}")
        if training.dtype is not None:
            words.append(training.dtype)
    return ", ".join(words)


def _row(training: Training) -> str:
    if isinstance(training, Rlvr):
        return f"{training.prompt_length} + {training.response_length}"
    return str(training.sequence_length)


def _needs(plan: StagePlan) -> str:
    """Processes, memory and time."""
    words = ["CPU"]
    if plan.memory.weights:
        words = [f"{plan.stage.layout.processes} x {plan.memory.total / 2**30:.0f} GiB of GPU"]
    words.append("? h" if plan.seconds is None else f"{plan.seconds / 3600:,.2f} h")
    return ", ".join(words)


def _left_out(plan: StagePlan, stage: Stage) -> Iterator[str]:
    real = plan.stage
    yield from _layouts(real.layout, stage.layout)
    if isinstance(stage, TrainingStage) and isinstance(real, TrainingStage):
        yield from _trainings(real.training, stage.training, plan.model)
    if isinstance(stage, EvaluateStage) and isinstance(real, EvaluateStage):
        tokens = real.asking.max_new_tokens
        if tokens > stage.asking.max_new_tokens:
            yield f"answers of {tokens} tokens"


def _layouts(real: Layout, fold: Layout) -> Iterator[str]:
    if real.processes == fold.processes:
        return
    yield str(real)
    if lost := lost_kinds(real, fold):
        yield f"{' and '.join(lost)} parallelism at all, for want of ranks"


def _trainings(real: Training, short: Training, model: ModelConfig) -> Iterator[str]:
    positions = model.max_position_embeddings
    if _row(real) != _row(short):
        yield f"rows of {_row(real)} tokens"
    if isinstance(real, Rlvr):
        if real.prompt_length + real.response_length > positions:
            yield f"answers end at position {positions:,}, the model's last"
        if real.served:
            yield "the rollout servers"
    elif real.sequence_length > positions:
        yield f"which is more than the model's {positions:,} positions"
