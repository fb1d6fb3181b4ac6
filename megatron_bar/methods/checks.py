"""Checks that several methods make of a recipe. All raise BarError."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from megatron_bar.methods.graph import ADAPTING, routing_data, training_of
from megatron_bar.recipe.fields import RUNTIME, names_with
from megatron_bar.recipe.names import MERGE_RULES
from megatron_bar.recipe.schema import Merge, Recipe
from megatron_bar.recipe.training import Rlvr
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
    """merge.shared is a mean, a rule, or the name of a model that is merged."""
    known = ("published", "branches", "anchor", *recipe.domains, *MERGE_RULES)
    if recipe.merge.shared not in known:
        raise BarError(f"merge.shared {recipe.merge.shared!r} is none of {', '.join(known)}")
    rule_settings(recipe)


def rule_settings(recipe: Recipe) -> None:
    """Settings of `merge` are given to a rule that takes them, which has what it needs."""
    shared = recipe.merge.shared
    for name in ("scale", "density", "t"):
        if getattr(recipe.merge, name) != getattr(Merge(), name) and (
            name not in MERGE_RULES.get(shared, ())
        ):
            takers = ", ".join(rule for rule, takes in MERGE_RULES.items() if name in takes)
            raise BarError(
                f"merge.{name} is for {takers}, and merge.shared is {shared}; leave it out"
            )
    if shared == "slerp" and len(recipe.domains) != 2:
        raise BarError(
            "merge.shared slerp takes two domains, and there are "
            f"{len(recipe.domains)}; give another rule"
        )
    if shared == "fisher":
        _second_moments(recipe)


def _second_moments(recipe: Recipe) -> None:
    """The last stage of each domain that is trained here leaves them."""
    for name, domain in recipe.domains.items():
        last = [
            (kind.KIND, training)
            for kind in ADAPTING
            if (training := training_of(domain, kind)) is not None
        ][-1:]
        for kind, training in last:
            if domain.checkpoint is None and not training.second_moments:
                raise BarError(
                    "merge.shared fisher weighs domains by what their last stages leave;"
                    f" set domains.{name}.{kind}.second_moments=true, and train that "
                    "stage anew (--from) where it is done already"
                )


def nothing_merged(recipe: Recipe) -> None:
    """Keys of `merge` aren't given to a method that merges nothing."""
    if recipe.merge != Merge():
        raise BarError(
            f"merge is for methods that merge, and {recipe.method} trains one model; leave it out"
        )


def some_training(recipe: Recipe, kinds: Iterable[type[TrainingStage]]) -> None:
    """Raise BarError unless a domain has a stage of these kinds."""
    kinds = tuple(kinds)
    if not any(training_of(d, kind) for d in recipe.domains.values() for kind in kinds):
        raise BarError(
            f"method {recipe.method} has nothing to train: no domain has "
            f"{' or '.join(kind.KIND for kind in kinds)}"
        )


def one_training(recipe: Recipe, kinds: Iterable[type[TrainingStage]]) -> None:
    """Stages of all domains at once train in one way; the domains' settings have to agree."""
    for kind in kinds:
        trainings = {
            name: training
            for name, domain in recipe.domains.items()
            if (training := training_of(domain, kind)) is not None
        }
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
                raise BarError(
                    f"method {recipe.method} adds up the steps of the domains' rlvr; "
                    f"give {name}'s length in steps"
                )


def has_pretrained(recipe: Recipe) -> None:
    """There is a pretrained model to start from."""
    if recipe.pretrained is None and recipe.pretrain is None:
        raise BarError(f"method {recipe.method} starts from the pretrained model; give pretrained")
