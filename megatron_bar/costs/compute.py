"""Operations and time of a stage.

Rows are taken as full, prompts and responses as long as they may be: it can't be more.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_bar.costs.communication import (
    GRADIENTS,
    WEIGHTS,
    micro_batches,
    overlaps,
    step_messages,
)
from megatron_bar.costs.efficiency import (
    SERVED_SHARE,
    TOKEN_SECONDS_PER_LAYER,
    Efficiency,
    recomputed,
    training_efficiency,
)
from megatron_bar.costs.machine import Machine
from megatron_bar.costs.memory import (
    PROMPT_TOKENS,
    WIDTH,
    answer_length,
    cache_bytes,
    rank_parameters,
)
from megatron_bar.generation.places import server_gpus
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.flops import StepFlops, Work, step_flops
from megatron_bar.recipe.schema import Evaluate
from megatron_bar.recipe.training import Rlvr, Training
from megatron_bar.rlvr.settings import reference_share
from megatron_bar.runtime.layout import Layout


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step by what they go into, on the GPU that has most to do.

    `reduce` and `gather` are those of gradients and weights over data-parallel ranks; of them
    `reduce_hidden` and `gather_hidden` may pass while others are computed. All other communication
    is waited for.
    """

    efficiency: Efficiency  # with which one GPU computes
    compute: float
    within: float  # communication within micro-batches: tensor, context, experts, pipeline
    bubble: float  # waiting for other pipeline ranks
    reduce: float
    gather: float
    reduce_hidden: float
    gather_hidden: float
    overlap: tuple[bool, bool] = (False, False)  # of reduce and gather, as the recipe has it

    def waiting(self, reduce: bool, gather: bool) -> float:
        """Seconds in which nothing is computed, with this overlapped or not."""
        hidden = reduce * self.reduce_hidden + gather * self.gather_hidden
        return self.within + self.bubble + self.reduce + self.gather - hidden

    def exposed(self, reduce: bool, gather: bool) -> float:
        """The same as a share of the step."""
        waiting = self.waiting(reduce, gather)
        return waiting / (self.compute + waiting)

    @property
    def total(self) -> float:
        return self.compute + self.waiting(*self.overlap)


def step_time(
    model: ModelConfig,
    layout: Layout,
    training: Training,
    trainable: Sequence[str],
    machine: Machine,
) -> StepTime:
    """The time of one optimizer step, by what one GPU reaches and by the messages."""
    count = micro_batches(layout, training)
    flops = _busiest(model, layout, training, trainable)
    efficiency = stage_efficiency(model, layout, training, trainable, machine)
    compute = flops.total / (machine.peak(training.compute_dtype) * efficiency.mfu)
    again = recomputed(model, training.recompute, training.row_length)
    forward = flops.forward / (flops.total + again * flops.forward)
    timed = [
        (message, message.seconds(machine))
        for message in step_messages(model, layout, training, trainable)
    ]
    reduce, gather = (
        sum(seconds for message, seconds in timed if message.purpose == purpose)
        for purpose in (GRADIENTS, WEIGHTS)
    )
    within = sum(seconds for _, seconds in timed) - reduce - gather
    # The last bucket of gradients has no backward pass beside it, the first of weights no forward.
    last, first = (
        sum(seconds / message.times for message, seconds in timed if message.purpose == purpose)
        for purpose in (GRADIENTS, WEIGHTS)
    )
    # Gradients can be reduced during the last micro-batch's backward pass, weights gathered during
    # the first one's forward pass.
    each = compute / count
    return StepTime(
        efficiency,
        compute,
        within,
        (compute + within) / count * (layout.pipeline - 1),
        reduce,
        gather,
        min(reduce - last, (1 - forward) * each),
        min(gather - first, forward * each),
        overlaps(training),
    )


def stage_efficiency(
    model: ModelConfig,
    layout: Layout,
    training: Training,
    trainable: Sequence[str],
    machine: Machine,
) -> Efficiency:
    """The share of its peak that a GPU reaches in a stage's products, and what of it is guessed."""
    return training_efficiency(
        model, layout, training, _row_flops(model, training, trainable), machine
    )


def _row_flops(model: ModelConfig, training: Training, trainable: Sequence[str]) -> StepFlops:
    return _flops_of(model, training.row_length, training.row_length, tuple(trainable))


@functools.cache
def _flops_of(
    model: ModelConfig, tokens: int, length: int, trainable: tuple[str, ...]
) -> StepFlops:
    """Of so many tokens in rows of `length`; kept, since a search asks for few of them often."""
    return step_flops(model, _work(model, tokens, length), trainable)


def _busiest(
    model: ModelConfig, layout: Layout, training: Training, trainable: Sequence[str]
) -> StepFlops:
    """Operations of a step on the rank that has most of them.

    That is one of the last pipeline rank, which has the head, and one whose experts train.
    """
    if layout.pipeline > 1:  # what comes from the ranks before has a gradient
        model = dataclasses.replace(model, num_layers=model.num_layers // layout.pipeline)
        trainable = [*trainable, "embeddings"]
    tokens = training.global_batch_size * training.row_length
    whole = _flops_of(model, tokens, training.row_length, tuple(trainable))
    open_experts = [name for name in trainable if name.startswith("expert.")]
    ranks = layout.processes // layout.pipeline
    mean = StepFlops(
        whole.forward / ranks, whole.activation_gradients / ranks, whole.weight_gradients / ranks
    )
    if model.num_experts is None or not open_experts or layout.expert == 1:
        return mean
    others = tuple(name for name in trainable if name not in open_experts)
    without = _flops_of(model, tokens, training.row_length, others)
    of_experts = (whole.weight_gradients - without.weight_gradients) / ranks
    here = model.num_experts // layout.expert
    numbers = [int(name.removeprefix("expert.")) // here for name in open_experts]
    most = max(map(numbers.count, numbers)) * layout.expert / len(numbers)
    return dataclasses.replace(
        mean, weight_gradients=mean.weight_gradients + (most - 1) * of_experts
    )


def stage_flops(
    model: ModelConfig, training: Training, trainable: Sequence[str], steps: int
) -> float:
    """Operations of all steps. For RLVR a response is generated, scored and trained on.

    In some steps or all it is scored again by the reference.
    """
    rows = steps * training.rows_per_step
    flops = rows * _row_flops(model, training, trainable).total
    return flops + rows * _passes(training) * _row_flops(model, training, ()).forward


def _passes(training: Training) -> float:
    """How often a row goes forward beside what it is trained on."""
    return 2 + reference_share(training) if isinstance(training, Rlvr) else 0.0


def stage_seconds(
    model: ModelConfig,
    layout: Layout,
    training: Training,
    trainable: Sequence[str],
    steps: int,
    machine: Machine,
    step: StepTime | None = None,
) -> float:
    """Seconds of all steps and, for RLVR, of generating.

    Where an mfu is given, that of the recipe before the machine's, communication is part of it.
    `step` is that of `step_time`, where the caller has it.
    """
    generating = (
        steps * _rollout_seconds(model, layout, training, machine)
        if isinstance(training, Rlvr)
        else 0.0
    )
    mfu = training.expected_mfu or machine.mfu
    if mfu is not None:
        rate = layout.processes * machine.peak(training.compute_dtype) * mfu
        return stage_flops(model, training, trainable, steps) / rate + generating
    updates = steps * training.rows_per_step / training.global_batch_size
    step = step or step_time(model, layout, training, trainable, machine)
    flops = _row_flops(model, training, trainable)
    return updates * step.total * (1 + _passes(training) * flops.forward / flops.total) + generating


def _rollout_seconds(model: ModelConfig, layout: Layout, settings: Rlvr, machine: Machine) -> float:
    at_once = settings.rollout_batch_size
    if settings.rollout_nodes:  # each server has that many answers under way for each rank
        at_once *= layout.data
        gpus = settings.rollout_nodes * machine.per_node
        layout = Layout(gpus, tensor=server_gpus(settings.rollout_options))
        at_once = min(at_once, math.ceil(settings.rows_per_step / layout.data))
    return _generation_seconds(
        model,
        layout,
        settings.rows_per_step,
        at_once,
        settings.prompt_length,
        settings.response_length,
        settings.compute_dtype,
        machine,
        settings.served,
    )


def _generation_seconds(
    model: ModelConfig,
    layout: Layout,
    answers: int,
    batch_size: int,
    prompt: int,
    length: int,
    dtype: str,
    machine: Machine,
    served: bool = False,
) -> float:
    """For each token of a batch, weights are read once and so is what the cache holds by then.

    In process that takes no less than a layer's launches do; pipeline ranks take turns.
    """
    batches = math.ceil(answers / (layout.data * batch_size))
    weights = WIDTH[dtype] * sum(rank_parameters(model, layout).values())
    cache = cache_bytes(model, layout, batch_size, dtype) * (prompt + length / 2)
    reading = layout.pipeline * (weights + cache) / machine.memory_rate
    if served:
        return batches * length * reading / SERVED_SHARE
    return batches * length * max(reading, model.num_layers * TOKEN_SECONDS_PER_LAYER)


def evaluation_flops(model: ModelConfig, settings: Evaluate, answers: int) -> float:
    """Operations of prompts and answers as long as they may be."""
    length = answer_length(model, settings)
    return step_flops(model, _work(model, answers * length, length), ()).total


def _work(model: ModelConfig, tokens: int, length: int) -> Work:
    """Of so many tokens in rows of `length`, each of which sees half its row."""
    seen = length // 2
    window = seen if model.window is None else min(seen, model.window.size)
    return Work(tokens, tokens * seen, tokens * window)


def evaluation_seconds(
    model: ModelConfig, layout: Layout, settings: Evaluate, answers: int, machine: Machine
) -> float:
    """Seconds of generating; questions are read in a few steps, which are neglected."""
    length = min(settings.max_new_tokens, answer_length(model, settings))
    return _generation_seconds(
        model,
        layout,
        answers,
        settings.batch_size,
        PROMPT_TOKENS,
        length,
        settings.compute_dtype,
        machine,
    )
