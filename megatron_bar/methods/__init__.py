"""The systems that a recipe can ask for with `method`: one file each, and one line here.

A method says which stages make its model (`stages`) and what that is evaluated as (`MODEL`), tells
the model card how it was made (`MADE`), and refuses recipes that ask for what it doesn't have
(`check`, which raises BarError).
"""

from __future__ import annotations

from pathlib import Path

from megatron_bar.analysis.runs import read_recipe
from megatron_bar.methods import (
    bar,
    btx,
    continued,
    dense_merge,
    flexolmo,
    retrain,
    retrain_midtrain,
)
from megatron_bar.recipe.names import ROUTED
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.context import Context, RunGraph
from megatron_bar.stages.stage import Stage

METHODS = {
    "bar": bar,
    "flexolmo": flexolmo,
    "btx": btx,
    "dense_merge": dense_merge,
    "continued": continued,
    "retrain": retrain,
    "retrain_midtrain": retrain_midtrain,
}
_WITH_BRANCHES = ("bar", "flexolmo")  # those that can take a branch that was trained before


def stage_graph(recipe: Recipe) -> list[Stage]:
    """All stages of the recipe's method, each after those it needs."""
    return METHODS[recipe.method].stages(recipe)


def context_of(recipe: Recipe, run: Path, name: str) -> Context:
    """The context of the stage `name` in `run`. Raises BarError if there is no such stage."""
    graph = RunGraph(stage_graph(recipe), METHODS[recipe.method])
    stage = next((stage for stage in graph.stages if stage.name == name), None)
    if stage is None:
        raise BarError(f"run {run} has no stage {name!r}")
    return Context(recipe, run, stage, graph)


def last_model(run: Path) -> str:
    """The evaluated model that the run is for: routed, merged or all."""
    method = METHODS.get(read_recipe(run).get("method", ""))
    return ROUTED if method is None else method.MODEL


def check_method(recipe: Recipe) -> None:
    """Raise BarError for a method that isn't known, or that the recipe doesn't go together with."""
    if recipe.method not in METHODS:
        raise BarError(f"there is no method {recipe.method!r}; there are {', '.join(METHODS)}")
    if recipe.order != "mixed" and recipe.method != "continued":
        raise BarError(
            f"order {recipe.order!r} is for method continued, and the method is {recipe.method}"
        )
    adopted = [name for name, domain in recipe.domains.items() if domain.checkpoint is not None]
    if adopted and recipe.method not in _WITH_BRANCHES:
        raise BarError(
            f"domains.{adopted[0]}.checkpoint is a branch with an anchor, and method "
            f"{recipe.method} has none; {' and '.join(_WITH_BRANCHES)} have"
        )
    METHODS[recipe.method].check(recipe)
