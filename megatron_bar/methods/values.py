"""Whether the values of a recipe can be, whatever the data and the models are.

Keys say themselves what theirs has to be (`recipe.fields`); here is what goes together. What
sources say of themselves is checked where they are opened and mixed.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_bar.methods import stage_graph
from megatron_bar.methods.graph import ADAPTING, route_training, training_of
from megatron_bar.recipe.fields import AT_LEAST_0, faults
from megatron_bar.recipe.schema import Evaluate, Recipe
from megatron_bar.recipe.training import Rlvr, Training
from megatron_bar.recipe.units import token_count
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.route import RouteStage


def value_faults(recipe: Recipe) -> list[str]:
    """Faults of the recipe's values, a line each. None: they can be."""
    return list(_faults(recipe))


def _faults(recipe: Recipe) -> Iterator[str]:
    yield from faults(recipe, "")
    yield from _layout(recipe.layout, "")
    if recipe.pretrain is not None:
        yield from faults(recipe.pretrain, "pretrain: ")
        yield from training_faults(recipe.pretrain.training, "pretrain.training: ")
    for name, domain in recipe.domains.items():
        for kind in ADAPTING:
            if (training := training_of(domain, kind)) is not None:
                yield from training_faults(training, f"domains.{name}.{kind.KIND}: ")
    yield from faults(recipe.merge, "merge.")
    yield from _route(recipe)
    yield from evaluate_faults(recipe.evaluate)


def evaluate_faults(evaluate: Evaluate) -> Iterator[str]:
    """Faults of the settings of an evaluation."""
    yield from faults(evaluate, "evaluate.")
    if evaluate.samples > 1 and evaluate.temperature == 0:
        yield (
            f"evaluate.samples {evaluate.samples} at temperature 0 would be "
            f"{evaluate.samples} times the same answer; set evaluate.temperature"
        )
    if evaluate.layout is not None:
        yield from _layout(evaluate.layout, "evaluate.")


def training_faults(training: Training, where: str) -> Iterator[str]:
    """Faults of the settings of a training; lines begin with `where`."""
    yield from faults(training, where)
    for group, factor in training.lr_scale.items():
        if (fault := AT_LEAST_0.fault(f"lr_scale.{group}", factor)) is not None:
            yield f"{where}{fault}"
    if training.tokens is not None:
        try:
            token_count(training.tokens)
        except BarError as error:
            yield f"{where}{error}"
    # RLVR's steps are rollouts, each of several optimizer steps.
    if (
        not isinstance(training, Rlvr)
        and training.warmup_steps is not None
        and (training.steps is not None and 1 <= training.steps < training.warmup_steps)
    ):
        yield (
            f"{where}warmup_steps {training.warmup_steps} is more than the "
            f"{training.steps} steps there are"
        )
    if training.profile is not None:
        yield from faults(training.profile, f"{where}profile.")
    if training.layout is not None:
        yield from _layout(training.layout, where)


def _layout(layout: Layout, where: str) -> Iterator[str]:
    try:
        layout.check()
    except BarError as error:
        yield f"{where}{error}"


def _route(recipe: Recipe) -> Iterator[str]:
    """Of methods that don't route nothing is asked."""
    if not any(isinstance(stage, RouteStage) for stage in stage_graph(recipe)):
        return
    route, experts = recipe.route, len(recipe.domains) + 1
    yield from faults(route, "route.")
    yield from training_faults(route_training(recipe), "route.training: ")
    active = experts if route.experts_per_token is None else route.experts_per_token
    if not 1 <= active <= experts:
        yield f"route.experts_per_token {active} is not from 1 to {experts}, the experts there are"
        return
    if route.renormalize and active == 1:
        yield (
            "route: with experts_per_token 1 renormalize gives every token's expert weight 1, "
            "so that the router has nothing to learn from; leave it out"
        )
    if route.load_balancing_loss > 0 and active == experts:
        yield (
            f"route.load_balancing_loss does nothing while every token goes to all {experts} "
            "experts; leave it out, or set experts_per_token lower"
        )
