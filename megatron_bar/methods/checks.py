"""Checks that several methods make of a recipe. All raise BarError."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from megatron_bar.methods.graph import routing_data, training_of
from megatron_bar.recipe.fields import RUNTIME, names_with
from megatron_bar.recipe.schema import Recipe, Rlvr
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.rlvr import RlvrStage
from megatron_bar.stages.training_stage import TrainingStage

# What domains may differ in and still be trained on in one stage.
_OWN = {"data", "validation", "steps", "epochs", "tokens"} | names_with(Rlvr, RUNTIME)


def can_route(recipe: Recipe) -> None:
    """The router has data to learn from."""
    if not any(routing_data(domain) for domain in recipe.domains.values()):
        raise BarError("no domain has sft, and route samples its data from there")
    if not 0 < recipe.route.fraction <= 1:
        raise BarError(f"route.fraction {recipe.route.fraction} is not in (0, 1]")


def shared_of_models(recipe: Recipe) -> None:
    """merge.shared is a mean, or the name of a model that is merged."""
    known = ("published", "branches", "anchor", *recipe.domains)
    if recipe.merge.shared not in known:
        raise BarError(f"merge.shared {recipe.merge.shared!r} is none of {', '.join(known)}")


def nothing_merged(recipe: Recipe) -> None:
    """merge.shared isn't given to a method that merges nothing."""
    if recipe.merge.shared != "published":
        raise BarError(f"merge.shared is for methods that merge, and {recipe.method} trains one "
                       "model; leave it out")


def some_training(recipe: Recipe, kinds: Iterable[type[TrainingStage]]) -> None:
    """Raise BarError unless a domain has a stage of these kinds."""
    kinds = tuple(kinds)
    if not any(training_of(d, kind) for d in recipe.domains.values() for kind in kinds):
        raise BarError(f"method {recipe.method} has nothing to train: no domain has "
                       f"{' or '.join(kind.KIND for kind in kinds)}")


def one_training(recipe: Recipe, kinds: Iterable[type[TrainingStage]]) -> None:
    """Stages of all domains at once train in one way; the domains' settings have to agree."""
    for kind in kinds:
        trainings = {name: training for name, domain in recipe.domains.items()
                     if (training := training_of(domain, kind)) is not None}
        if not trainings:
            continue
        first_name, first = next(iter(trainings.items()))
        for name, training in trainings.items():
            for field in dataclasses.fields(training):
                here, there = getattr(first, field.name), getattr(training, field.name)
                if field.name not in _OWN and here != there:
                    raise BarError(
                        f"method {recipe.method} trains all domains in one stage, and {kind.KIND}."
                        f"{field.name} is {here} for {first_name} and {there} for {name}; give "
                        "them one"
                    )
            if kind is RlvrStage and training.steps is None:
                raise BarError(f"method {recipe.method} adds up the steps of the domains' rlvr; "
                               f"give {name}'s length in steps")


def has_pretrained(recipe: Recipe) -> None:
    """There is a pretrained model to start from."""
    if recipe.pretrained is None and recipe.pretrain is None:
        raise BarError(f"method {recipe.method} starts from the pretrained model; give pretrained")
