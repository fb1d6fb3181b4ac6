"""Which values the keys of a recipe may have, whatever the data and the models are.

What sources say of themselves is checked where they are opened and mixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_bar.recipe.graph import route_training
from megatron_bar.recipe.methods import stage_graph
from megatron_bar.recipe.schema import Evaluate, Pretrain, Recipe, Rlvr, Route, Training
from megatron_bar.recipe.units import token_count
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout

DTYPES = ("float32", "bfloat16")
STARTS = ("stacked", "random", "centroids")


@dataclass(frozen=True)
class _Rule:
    """What a value is to be, in words, and whether it is. Keys that are unset aren't looked at."""

    words: str
    holds: Callable[[Any], bool]

    def fault(self, where: str, key: str, value: Any) -> str | None:
        if value is None or self.holds(value):
            return None
        return f"{where}{key} {value!r} is not {self.words}"


def _one_of(*words: str) -> _Rule:
    told = f"{', '.join(words[:-1])} or {words[-1]}"
    return _Rule(told, lambda value: value in words)


_AT_LEAST_0 = _Rule("0 or more", lambda value: 0 <= value < math.inf)
_ABOVE_0 = _Rule("above 0", lambda value: 0 < value < math.inf)
_COUNT = _Rule("at least 1", lambda value: value >= 1)
_SHARE = _Rule("a share from 0 to 1", lambda value: 0 <= value <= 1)
_BETA = _Rule("in [0, 1)", lambda value: 0 <= value < 1)

_RULES: Mapping[type, Mapping[str, _Rule]] = {
    Training: {
        "steps": _COUNT, "epochs": _ABOVE_0, "sequence_length": _COUNT, "batch_size": _COUNT,
        "micro_batch_size": _COUNT, "overlong": _one_of("truncate", "drop"), "lr": _AT_LEAST_0,
        "schedule": _one_of("linear", "cosine", "constant"),
        "warmup": _Rule("a share in [0, 1); give a number of steps as warmup_steps",
                        _BETA.holds),
        "warmup_steps": _AT_LEAST_0, "min_lr_ratio": _SHARE, "beta1": _BETA, "beta2": _BETA,
        "eps": _ABOVE_0, "weight_decay": _AT_LEAST_0, "clip": _AT_LEAST_0,
        "router_z_loss": _AT_LEAST_0, "dtype": _one_of(*DTYPES),
        "recompute": _one_of("none", "moe", "full"), "on_bad_step": _one_of("stop", "skip"),
        "spike": _Rule("above 1; it is a factor", lambda value: 1 < value < math.inf),
        "max_skips": _COUNT, "validate_every": _COUNT, "save_every": _COUNT,
        "save_every_minutes": _ABOVE_0, "keep": _COUNT, "stop_after_minutes": _ABOVE_0,
        "log_every": _COUNT, "peak_tflops": _ABOVE_0,
    },
    Rlvr: {
        "clip_low": _SHARE, "clip_high": _AT_LEAST_0, "kl_coefficient": _AT_LEAST_0,
        "reward_scale": _ABOVE_0, "no_resampling_pass_rate": _SHARE, "kl_every": _AT_LEAST_0,
        "verifiers_at_once": _COUNT,
    },
    Pretrain: {"vocab_size": _COUNT,
               "snapshot": _Rule("a share above 0, up to 1", lambda value: 0 < value <= 1)},
    Route: {"start": _one_of(*STARTS), "load_balancing": _AT_LEAST_0},
    Evaluate: {
        "dtype": _one_of(*DTYPES), "max_new_tokens": _COUNT, "batch_size": _COUNT,
        "samples": _COUNT, "temperature": _AT_LEAST_0,
    },
}


def value_faults(recipe: Recipe) -> list[str]:
    """What is wrong with values of the recipe, a line each. None: they can be."""
    return list(_faults(recipe))


def _faults(recipe: Recipe) -> Iterator[str]:
    yield from _layout(recipe.layout, "")
    if recipe.pretrain is not None:
        yield from _ruled(recipe.pretrain, Pretrain, "pretrain: ")
        yield from _training(recipe.pretrain.training, "pretrain.training: ")
    for name, domain in recipe.domains.items():
        for kind in ("midtrain", "sft", "rlvr"):
            if (training := getattr(domain, kind)) is not None:
                yield from _training(training, f"domains.{name}.{kind}: ")
    yield from _route(recipe)
    yield from evaluate_faults(recipe.evaluate)


def evaluate_faults(evaluate: Evaluate) -> Iterator[str]:
    """What is wrong with the settings of an evaluation."""
    yield from _ruled(evaluate, Evaluate, "evaluate.")
    if evaluate.samples > 1 and evaluate.temperature == 0:
        yield (f"evaluate.samples {evaluate.samples} at temperature 0 would be "
               f"{evaluate.samples} times the same answer; set evaluate.temperature")
    if evaluate.layout is not None:
        yield from _layout(evaluate.layout, "evaluate.")


def _ruled(settings: Any, schema: type, where: str) -> Iterator[str]:
    for key, rule in _RULES[schema].items():
        if (fault := rule.fault(where, key, getattr(settings, key))) is not None:
            yield fault


def _training(training: Training, where: str) -> Iterator[str]:
    yield from _ruled(training, Training, where)
    if isinstance(training, Rlvr):
        yield from _ruled(training, Rlvr, where)
    for group, factor in training.lr_scale.items():
        if (fault := _AT_LEAST_0.fault(where, f"lr_scale.{group}", factor)) is not None:
            yield fault
    if training.tokens is not None:
        try:
            token_count(training.tokens)
        except BarError as error:
            yield f"{where}{error}"
    # RLVR's steps are rollouts, each of several optimizer steps.
    if not isinstance(training, Rlvr) and (training.warmup_steps or 0) > (
            training.steps or math.inf):
        yield (f"{where}warmup_steps {training.warmup_steps} is more than the "
               f"{training.steps} steps there are")
    if training.layout is not None:
        yield from _layout(training.layout, where)


def _layout(layout: Layout, where: str) -> Iterator[str]:
    try:
        layout.check()
    except BarError as error:
        yield f"{where}{error}"


def _route(recipe: Recipe) -> Iterator[str]:
    """Of methods that don't route nothing is asked."""
    if not any(stage.kind == "route" for stage in stage_graph(recipe)):
        return
    route, experts = recipe.route, len(recipe.domains) + 1
    yield from _ruled(route, Route, "route.")
    yield from _training(route_training(recipe), "route.training: ")
    active = experts if route.active is None else route.active
    if not 1 <= active <= experts:
        yield f"route.active {active} is not from 1 to {experts}, the experts there are"
        return
    if route.renormalize and active == 1:
        yield ("route: with active 1 renormalize gives every token's expert weight 1, so that the "
               "router has nothing to learn from; leave it out")
    if route.load_balancing and active == experts:
        yield (f"route.load_balancing does nothing while every token goes to all {experts} "
               "experts; leave it out, or set active to fewer")
