"""The share of a GPU's peak that a training step reaches: what was measured, and guesses between.

The table has time for an operation on one GPU, without others. Between its rows a guess is made,
each part of it a straight line:

- What trains: by the share of products whose weights train, from one of two experts to all.
- Recomputation: by the share of the forward pass that is done again.
- Size: by the logarithm of what a layer's products have to do in a micro-batch on one GPU, which is
  tokens x hidden^2 / tensor. Small products wait for the host. Beyond the rows it stays as it is.
- Another GPU: products take what they take by the data sheets' peaks, at the share of it that they
  were measured to reach; all else goes with the memory's rate.

Rows of a site file correct the table: the one that is nearest to a shape gives the ratio of what
was measured to what the table says for it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_bar.costs.machine import DEVICES, Machine, Measured
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.flops import StepFlops, Work, step_flops
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.layout import Layout

# Of the peak that matrix products of these shapes reached: 803 of 989 TFLOP/s, on the H200 of the
# table. What was noted as a share of that speed is one of the data sheet's here.
PRODUCTS = 803 / 989
_SOURCE = (
    "one H200, 4 layers, hidden 4096, ffn 11008, vocabulary 100,352, 2 experts, 2 x 4096 tokens in "
    "4 documents, bf16, torch 2.11, megatron-core 0.16.1, November 2026, commit 1f37cbc"
)
TABLE = (
    Measured(0.51 * PRODUCTS, "H200", trains="expert", source=_SOURCE),
    Measured(0.475 * PRODUCTS, "H200", trains="all", source=_SOURCE),
    Measured(0.35 * PRODUCTS, "H200", trains="expert", recompute="full", source=_SOURCE),
    Measured(0.38 * PRODUCTS, "H200", trains="all", recompute="full", source=_SOURCE),
    Measured(0.30 * PRODUCTS, "H200", transformer_engine=False, source=_SOURCE),
    Measured(0.375 * PRODUCTS, "H200", trains="all", transformer_engine=False, source=_SOURCE),
    Measured(
        0.285,
        "H200",
        hidden=2048,
        source="the same GPU, OLMo-2 1B whole, mid-training by a recipe, 2 x 4096 tokens, another "
        "stage beside it for a part of the time",
    ),
)
# The model of the table's rows, whose layers are all alike.
_SHAPE = ModelConfig(100_352, 4096, 11_008, 4, 32, 32).with_experts(2)
_TOKENS, _LENGTH = 8192, 2048
EXPERT_GROUPS = ("expert.1", "router.1")
# Attention and launches of a layer that generates a token, on the host: 48 ms for 16 layers of a 1B
# model, 32 rows at once, on the same H200. No GPU reads a layer's weights that slowly.
TOKEN_SECONDS_PER_LAYER = 48e-3 / 16
# Of the memory's rate that a server of its own generates at. A guess.
SERVED_SHARE = 0.35


@dataclass(frozen=True)
class Shape:
    """Figures of a step from which its speed is worked out."""

    size: float  # tokens x hidden^2 / tensor
    trains: float  # 0: one expert of two; 1: all
    again: float  # share of the forward pass that is computed twice

    def far(self, other: Shape) -> float:
        return (
            abs(math.log2(self.size / other.size))
            + abs(self.trains - other.trains)
            + abs(self.again - other.again)
        )


@dataclass(frozen=True)
class Efficiency:
    """A share of the data sheet's peak, and what about it is a guess; nothing is where measured."""

    mfu: float
    guessed: tuple[str, ...] = ()

    @property
    def basis(self) -> str:
        return f"guessed for {', '.join(self.guessed)}" if self.guessed else "measured"


def training_efficiency(
    model: ModelConfig,
    layout: Layout,
    training: Training,
    flops: StepFlops,
    machine: Machine,
) -> Efficiency:
    """The efficiency of a stage whose steps have so many operations."""
    tokens = training.micro_batch_size * training.row_length // layout.context
    shape = Shape(
        tokens * model.hidden_size**2 / layout.tensor,
        _between(_opened(flops), *_measured_shares()),
        recomputed(model, training.recompute, training.row_length),
    )
    mfu = _by_table(shape, machine.gpu, machine.transformer_engine)
    mine = min(machine.measured, key=lambda row: _shape_of(row).far(shape), default=None)
    if mine is not None:
        told = _by_table(_shape_of(mine), mine.gpu, mine.transformer_engine)
        mfu = min(mfu * mine.mfu / told, 1.0)
    rows = machine.measured or TABLE
    return Efficiency(mfu, tuple(_differences(model, training, shape, rows, machine)))


def recomputed(model: ModelConfig, recompute: str, length: int) -> float:
    """The share of a layer's forward pass that `recompute` has done twice."""
    if recompute == "none":
        return 0.0
    if recompute == "full" or model.num_experts is None:
        return float(recompute == "full")
    width = model.num_heads * model.head_dim
    kv_width = model.num_kv_heads * model.head_dim
    experts = 3 * model.active_ffns * model.hidden_size * model.ffn_hidden_size
    attention = 2 * model.hidden_size * (width + kv_width) + width * length
    return experts / (experts + attention)


def _by_table(shape: Shape, gpu: str, transformer_engine: bool) -> float:
    seconds = {
        recompute: _line(
            shape.trains,
            *(_time(trains, recompute, gpu, transformer_engine) for trains in ("expert", "all")),
        )
        for recompute in ("none", "full")
    }
    return _of_size(shape.size) / _line(shape.again, seconds["none"], seconds["full"])


def _time(trains: str, recompute: str, gpu: str, transformer_engine: bool) -> float:
    """Of an operation, where 1 is the peak's, at the table's hidden size."""

    def row(recompute: str, transformer_engine: bool) -> Measured:
        return next(
            row
            for row in TABLE
            if (row.trains, row.recompute, row.transformer_engine, row.hidden)
            == (trains, recompute, transformer_engine, _SHAPE.hidden_size)
        )

    measured = row("none", transformer_engine)
    seconds = 1 / measured.mfu
    if recompute == "full":  # measured with Transformer Engine alone
        seconds *= row("none", True).mfu / row("full", True).mfu
    slower = DEVICES[measured.gpu].memory_rate / DEVICES[gpu].memory_rate
    return 1 / PRODUCTS + (seconds - 1 / PRODUCTS) * slower


def _of_size(size: float) -> float:
    """Of the largest row's efficiency, that of products of `size`."""
    rows = sorted(
        (_shape_of(row).size, row.mfu)
        for row in TABLE
        if (row.trains, row.recompute, row.transformer_engine) == ("expert", "none", True)
    )
    (small, low), (large, high) = rows[0], rows[-1]
    place = _between(math.log2(size), math.log2(small), math.log2(large))
    return _line(place, low / high, 1.0)


def _shape_of(row: Measured) -> Shape:
    return Shape(
        row.tokens * row.hidden**2, float(row.trains == "all"), float(row.recompute == "full")
    )


def _opened(flops: StepFlops) -> float:
    """The share of products whose weights have a gradient."""
    return flops.weight_gradients / flops.forward


@functools.cache
def _measured_shares() -> tuple[float, float]:
    """`_opened` of the table's rows: one expert trains, and all trains."""
    seen = _TOKENS * _LENGTH // 2
    work = Work(_TOKENS, seen, seen)
    everything = ("embeddings", "attention", "block_norms", "final_norm", "head", "expert.0")
    one, all_ = (
        _opened(step_flops(_SHAPE, work, groups))
        for groups in (EXPERT_GROUPS, (*everything, *EXPERT_GROUPS, "router.0"))
    )
    return one, all_


def _differences(
    model: ModelConfig,
    training: Training,
    shape: Shape,
    rows: Sequence[Measured],
    machine: Machine,
) -> list[str]:
    """In what a stage isn't like the row that is nearest to it, in a few words each."""
    nearest = min(rows, key=lambda row: _shape_of(row).far(shape))
    near, words = _shape_of(nearest), []
    if nearest.gpu != machine.gpu:
        words.append(f"{machine.gpu} (from {nearest.gpu})")
    if abs(math.log2(shape.size / near.size)) > 0.01:
        words.append(f"{shape.size / near.size:.2g} x the size")
    if abs(shape.trains - near.trains) > 0.1:
        words.append("what trains")
    if abs(shape.again - near.again) > 0.01:
        words.append(f"recompute {training.recompute}")
    if model.num_experts != 2 and rows is TABLE:
        words.append(f"{model.num_experts} experts" if model.num_experts else "a dense model")
    if training.dtype == "float32":
        words.append("float32")
    return words


def _between(value: float, low: float, high: float) -> float:
    """The place of `value` on the way from `low` to `high`, in [0, 1]."""
    return min(max((value - low) / (high - low), 0.0), 1.0)


def _line(place: float, low: float, high: float) -> float:
    return low + place * (high - low)
