"""Changes with which a stage fits into its GPUs: few keys before the layout."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megatron_bar.costs.layouts import layout_sizes, possible_layouts, shares_evenly
from megatron_bar.costs.memory import evaluation_memory, training_memory
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.schema import Evaluate
from megatron_bar.recipe.training import Rlvr, Training
from megatron_bar.runtime.layout import Layout


def suggest_training(
    model: ModelConfig,
    layout: Layout,
    training: Training,
    trainable: Sequence[str],
    limit: int,
) -> dict[str, Any] | None:
    """Keys of a stage, with values in which it fits, or None where none of these helps.

    One key, if one is enough; else several, or the nearest layout of as many processes.
    """
    options: dict[str, list[Any]] = {}
    if training.dtype == "float32":
        options["dtype"] = ["bfloat16"]
    if training.micro_batch_size > 1:
        options["micro_batch_size"] = [1]
    if training.fp8_frozen_experts:
        options["fp8_frozen_experts"] = [False]
    if training.recompute != "full":
        options["recompute"] = ["full"]
    if isinstance(training, Rlvr) and training.rollout_batch_size > 1:
        options["rollout_batch_size"] = _halves(training.rollout_batch_size)

    def fits(changed: Training) -> bool:
        return training_memory(model, layout, changed, trainable).total <= limit

    def nearest(changed: Training) -> Layout | None:
        return nearest_fit(model, layout, changed, trainable, limit)

    return _suggest(training, options, fits, nearest)


def suggest_evaluation(
    model: ModelConfig, layout: Layout, settings: Evaluate, limit: int
) -> dict[str, Any] | None:
    """The same of an evaluation."""
    options: dict[str, list[Any]] = {}
    if settings.dtype == "float32":
        options["dtype"] = ["bfloat16"]
    if settings.batch_size > 1:
        options["batch_size"] = _halves(settings.batch_size)

    def fits(changed: Evaluate) -> bool:
        return evaluation_memory(model, layout, changed).total <= limit

    def nearest(changed: Evaluate) -> Layout | None:
        return nearest_evaluation_fit(model, layout, changed, limit)

    return _suggest(settings, options, fits, nearest)


def _suggest(
    settings: Any,
    options: Mapping[str, Sequence[Any]],
    fits: Callable[[Any], bool],
    nearest: Callable[[Any], Layout | None],
) -> dict[str, Any] | None:
    for count in range(1, len(options) + 1):
        for keys in itertools.combinations(options, count):
            for values in itertools.product(*(options[key] for key in keys)):
                changes = dict(zip(keys, values))
                if fits(dataclasses.replace(settings, **changes)):
                    return changes
    least = {key: values[-1] for key, values in options.items()}
    for changes in ({}, least):
        layout = nearest(dataclasses.replace(settings, **changes))
        if layout is not None:
            return changes | {"layout": layout}
    return None


def _halves(size: int) -> list[int]:
    return [size >> times for times in range(1, size.bit_length())]


def keys_of(suggestion: Mapping[str, Any]) -> str:
    """Keys that would make a stage fit, in a few words."""
    words = [f"{key} {value}" for key, value in suggestion.items() if key != "layout"]
    layout = suggestion.get("layout")
    return ", ".join(
        words
        + (
            []
            if layout is None
            else [f"{name} {size}" for name, size in layout_sizes(layout).items()]
        )
    )


def nearest_fit(
    model: ModelConfig,
    layout: Layout,
    training: Training,
    trainable: Sequence[str],
    limit: int,
) -> Layout | None:
    """The layout with least changed, of as many processes, in which a stage fits."""
    return min(
        (
            other
            for other in possible_layouts(model, layout, [layout.context])
            if shares_evenly(training, other)
            and training_memory(model, other, training, trainable).total <= limit
        ),
        key=lambda other: _distance(layout, other),
        default=None,
    )


def nearest_evaluation_fit(
    model: ModelConfig, layout: Layout, settings: Evaluate, limit: int
) -> Layout | None:
    """The same of an evaluation."""
    return min(
        (
            other
            for other in possible_layouts(model, layout, [layout.context])
            if evaluation_memory(model, other, settings).total <= limit
        ),
        key=lambda other: _distance(layout, other),
        default=None,
    )


def _distance(layout: Layout, other: Layout) -> tuple[float, float]:
    changes = [
        abs(math.log2(getattr(other, name) / getattr(layout, name)))
        for name in ("tensor", "expert", "pipeline")
    ]
    return sum(changes), changes[2]
