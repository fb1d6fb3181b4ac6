"""Operations and time of a training stage.

Rows are taken as full, prompts and responses as long as they may be: it can't be more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_bar.costs.memory import (
    PROMPT_TOKENS,
    WIDTH,
    answer_length,
    cache_bytes,
    rank_parameters,
)
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.flops import Work, step_flops
from megatron_bar.recipe.schema import Evaluate
from megatron_bar.recipe.training import Rlvr, Training
from megatron_bar.rlvr.settings import reference_share
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.mfu import PEAK_TFLOPS

# Bytes a second that a GPU reads from its memory, from NVIDIA's data sheets.
_MEMORY_RATE = {"H100 PCIe": 2.0e12, "H100": 3.35e12, "H200": 4.8e12, "A100": 2.0e12}


@dataclass(frozen=True)
class Machine:
    """The GPUs that a plan assumes."""

    name: str = "H100"
    memory: int = 80 << 30
    per_node: int = 8
    # Of the peak that a training step reaches, its communication included, and of the memory's that
    # generation does: a guess to be replaced by `mfu` of a first run's metrics.
    mfu: float = 0.35
    checkpoint_rate: float = 2e9  # bytes a second, for stages that only convert

    def rate(self, dtype: str) -> float:
        """Operations a second that one GPU gets done."""
        return 1e12 * PEAK_TFLOPS[self.name][getattr(torch, dtype)] * self.mfu

    @property
    def read_rate(self) -> float:
        """Bytes a second that one GPU reads while it generates."""
        return _MEMORY_RATE[self.name] * self.mfu


def machine_named(name: str, memory_gib: int, mfu: float) -> Machine:
    """Raises BarError for a GPU whose peak isn't known and for an mfu that can't be."""
    if name not in PEAK_TFLOPS:
        raise BarError(f"--gpu {name}: its peak isn't known; there are {', '.join(PEAK_TFLOPS)}")
    if not 0 < mfu <= 1:
        raise BarError(f"--mfu {mfu} is not in (0, 1]")
    return Machine(name, memory_gib << 30, mfu=mfu)


def stage_flops(
    model: ModelConfig, training: Training, trainable: Sequence[str], steps: int
) -> float:
    """Operations of all steps. For RLVR a response is generated, scored and trained on.

    In some steps or all it is scored again by the reference.
    """
    length = training.row_length
    rows = steps * training.rows_per_step
    work = _work(model, rows * length, length)
    flops = step_flops(model, work, trainable).total
    if isinstance(training, Rlvr):
        flops += (2 + reference_share(training)) * step_flops(model, work, ()).total
    return flops


def stage_seconds(
    model: ModelConfig,
    layout: Layout,
    training: Training,
    trainable: Sequence[str],
    steps: int,
    machine: Machine,
) -> float:
    """Seconds of arithmetic at the machine's rate and, for RLVR, of reading memory to generate."""
    flops = stage_flops(model, training, trainable, steps)
    seconds = flops / (layout.processes * machine.rate(training.compute_dtype))
    if isinstance(training, Rlvr):
        seconds += steps * _rollout_seconds(model, layout, training, machine)
    return seconds


def _rollout_seconds(model: ModelConfig, layout: Layout, settings: Rlvr, machine: Machine) -> float:
    return _generation_seconds(
        model,
        layout,
        settings.rows_per_step,
        settings.rollout_batch_size,
        settings.prompt_length,
        settings.response_length,
        settings.compute_dtype,
        machine,
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
) -> float:
    """For each token of a batch, weights are read once and so is what the cache holds by then."""
    batches = math.ceil(answers / (layout.data * batch_size))
    weights = WIDTH[dtype] * sum(rank_parameters(model, layout).values())
    cache = cache_bytes(model, layout, batch_size, dtype) * (prompt + length / 2)
    reads = layout.pipeline * (weights + cache)  # stages take turns
    return batches * length * reads / machine.read_rate


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
    """Seconds of arithmetic at the machine's rate, and of reading memory to generate."""
    flops = evaluation_flops(model, settings, answers)
    length = min(settings.max_new_tokens, answer_length(model, settings))
    reading = _generation_seconds(
        model,
        layout,
        answers,
        settings.batch_size,
        PROMPT_TOKENS,
        length,
        settings.compute_dtype,
        machine,
    )
    return flops / (layout.processes * machine.rate(settings.compute_dtype)) + reading
