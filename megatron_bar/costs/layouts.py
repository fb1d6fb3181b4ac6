"""Layouts that can hold a model, and how fast a stage would be in each."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_bar.costs.communication import micro_batches
from megatron_bar.costs.compute import StepTime, stage_seconds, step_time
from megatron_bar.costs.machine import Machine
from megatron_bar.costs.memory import Memory, training_memory
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.training import Rlvr, Training
from megatron_bar.rlvr.settings import check_settings
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout

_SIZES = (1, 2, 4, 8)  # of tensor and context: more would leave a node
_NEARLY = 1.02  # what is reckoned isn't known better
_RECOMPUTE = ("none", "moe", "full")


@dataclass(frozen=True)
class Choice:
    """A layout with the two keys that go with it, and what a stage needs and takes so."""

    layout: Layout
    micro_batch_size: int
    recompute: str
    memory: Memory
    seconds: float  # of one of the stage's steps
    time: StepTime  # of one of the optimizer's

    @property
    def cuts(self) -> int:
        """Pieces into which ranks cut rows and the model."""
        return self.layout.processes // self.layout.data * self.layout.expert


def ranked_choices(
    model: ModelConfig,
    training: Training,
    trainable: Sequence[str],
    layout: Layout,
    machine: Machine,
) -> list[Choice]:
    """All choices that fit as many GPUs as `layout` has, the fastest first.

    Left out are those whose tensor- and context-parallel ranks leave a node, and pipelines of more
    ranks than micro-batches.
    """
    contexts = (1,) if isinstance(training, Rlvr) else _SIZES
    found = []
    for other in possible_layouts(model, layout, contexts):
        if other.tensor * other.context > machine.per_node:
            continue
        for size, recompute in itertools.product(_SIZES, _RECOMPUTE):
            changed = dataclasses.replace(training, micro_batch_size=size, recompute=recompute)
            if not shares_evenly(changed, other) or (
                other.pipeline > micro_batches(other, changed)
            ):
                continue
            memory = training_memory(model, other, changed, trainable)
            if memory.total <= machine.memory_bytes:
                time = step_time(model, other, changed, trainable, machine)
                seconds = stage_seconds(model, other, changed, trainable, 1, machine, time)
                found.append(Choice(other, size, recompute, memory, seconds, time))
    return sorted(found, key=lambda choice: choice.seconds)


def recommended(choices: Sequence[Choice]) -> Choice:
    """The simplest of the choices that are nearly as fast as the first, which is the fastest.

    That is the one that cuts the model into fewest pieces, and of these the one in least memory.
    """
    fast = [choice for choice in choices if choice.seconds <= _NEARLY * choices[0].seconds]
    return min(fast, key=lambda choice: (choice.cuts, choice.layout.pipeline, choice.memory.total))


def layout_sizes(layout: Layout) -> dict[str, int]:
    """The keys of a layout that say how a model is cut."""
    sizes = {"tensor": layout.tensor, "expert": layout.expert, "pipeline": layout.pipeline}
    if layout.resolved_expert_tensor != layout.tensor:
        sizes["expert_tensor"] = layout.resolved_expert_tensor
    if layout.context > 1:
        sizes["context"] = layout.context
    return sizes


def shares_evenly(training: Training, layout: Layout) -> bool:
    """Whether the ranks of `layout` can share a step's work evenly."""
    if isinstance(training, Rlvr):
        try:
            check_settings(training, layout)
        except BarError:
            return False
    if layout.context > 1 and training.row_length % (2 * layout.context):
        return False
    return training.global_batch_size % (layout.data * training.micro_batch_size) == 0


def possible_layouts(
    model: ModelConfig, given: Layout, contexts: Sequence[int]
) -> Iterator[Layout]:
    """Layouts of as many processes as `given` that can hold `model`."""
    experts = model.num_experts or 1
    for tensor, context, pipeline, expert in itertools.product(
        _SIZES, contexts, _divisors(model.num_layers), _divisors(experts)
    ):
        for expert_tensor in sorted({tensor, 1 if expert > 1 else tensor}):
            layout = Layout(given.processes, tensor, pipeline, expert, expert_tensor, context)
            try:
                layout.check()
                model.check(layout)
            except BarError:
                continue
            yield layout


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
