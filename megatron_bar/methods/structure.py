"""Rules on which keys of a recipe go together, and what things in it may be called."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_bar.methods import check_method, stage_graph
from megatron_bar.methods.graph import ADAPTING, route_training, training_of
from megatron_bar.recipe.names import TAKEN_NAMES, TAKEN_STARTS
from megatron_bar.recipe.schema import Domain, Recipe
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.route import RouteStage

_LONGEST_FOLDER = 255  # bytes of its name that file systems take
_LONGEST_PLAIN = 200  # logs and scripts are called by it and a few words more


def structure_faults(recipe: Recipe, of_run: str | None = None) -> list[str]:
    """A line for each thing that is wrong; the graph's only where its parts are sound.

    `of_run` is the name of the run's folder where the recipe is what a run wrote there. Only such a
    one may be called NAME/SYSTEM.
    """
    faults = [*_name_faults(recipe, of_run), *_start_faults(recipe), *_domain_faults(recipe)]
    return faults or list(_graph_faults(recipe))


def is_plain(name: str) -> bool:
    """It can be the name of a folder, and one word of a command line."""
    return (
        name[:1].isalnum()
        and name.replace("_", "").replace("-", "").isalnum()
        and len(name.encode()) <= _LONGEST_PLAIN
    )


def _is_folder(name: str) -> bool:
    """It is the name of one folder, whatever else it may look like."""
    return (
        name == name.strip()
        and name.isprintable()
        and "/" not in name
        and not name.startswith((".", "-"))
        and name != ""
        and len(name.encode()) <= _LONGEST_FOLDER
    )


def _name_faults(recipe: Recipe, of_run: str | None) -> Iterator[str]:
    *above, last = recipe.name.split("/")
    own = not above or (len(above) == 1 and last == of_run)
    if not own or not all(map(_is_folder, [*above, last])):
        yield (
            f"name {recipe.name!r} is not the name of one folder, such as my-run, of at most "
            f"{_LONGEST_FOLDER} bytes; runs says where it lies"
        )


def _start_faults(recipe: Recipe) -> Iterator[str]:
    if (recipe.anchor is None) == (recipe.pretrain is None):
        yield "give either anchor (a Hugging Face folder) or pretrain"
    if recipe.pretrain is None:
        return
    training = recipe.pretrain.training
    yield from training_structure_faults(training, "pretrain.training")
    if training.steps is None:
        yield "pretrain.training: give steps, not epochs or tokens"
    if any(source.weight for source in (*training.data, *recipe.pretrain.chat)):
        yield "pretrain mixes its sources by count, not by weight"
    if training.validation:
        yield "pretrain.training: pretrain has no validation, leave it out"


def _domain_faults(recipe: Recipe) -> Iterator[str]:
    if not recipe.domains:
        yield "domains is empty; name at least one"
    for name, domain in recipe.domains.items():
        if not is_plain(name) or name in TAKEN_NAMES or name.startswith(TAKEN_STARTS):
            too_long = len(name.encode()) > _LONGEST_PLAIN
            yield (
                f"a domain can't be called {name!r}, use another name"
                + (f" of at most {_LONGEST_PLAIN} bytes" if too_long else "")
            )
        yield from _stage_faults(domain, f"domains.{name}")


def _stage_faults(domain: Domain, where: str) -> Iterator[str]:
    given = {
        kind.KIND: training
        for kind in ADAPTING
        if (training := training_of(domain, kind)) is not None
    }
    if domain.checkpoint is not None and given:
        yield (
            f"{where} has a checkpoint, so leave out {next(iter(given))}; what route samples "
            "stands under routing"
        )
    if domain.checkpoint is None and not given:
        yield f"{where} has neither {' nor '.join(kind.KIND for kind in ADAPTING)}"
    for kind, training in given.items():
        yield from training_structure_faults(training, f"{where}.{kind}")


def _graph_faults(recipe: Recipe) -> Iterator[str]:
    try:
        check_method(recipe)
    except BarError as error:
        yield str(error)
        return
    routes = any(isinstance(stage, RouteStage) for stage in stage_graph(recipe))
    if routes:
        if recipe.route.training.data:
            yield "route.training: data is drawn from the domains' SFT data; leave it out"
        yield from training_structure_faults(
            route_training(recipe), "route.training", needs_data=False
        )
    for name in recipe.evaluate.opt_out:
        if not routes:
            yield (f"evaluate.opt_out is for methods that route, and the method is {recipe.method}")
        if name != "anchor" and name not in recipe.domains:
            yield (
                f"evaluate.opt_out names {name!r}, which is no expert; there are anchor, "
                f"{', '.join(recipe.domains)}"
            )


def training_structure_faults(
    training: Training, where: str, needs_data: bool = True
) -> Iterator[str]:
    """Faults of what is given together in a training; lines begin with `where`."""
    if needs_data and not training.data:
        yield f"{where}: data is empty"
    if any(s.weight is not None or s.repeat != 1 for s in training.validation):
        yield f"{where}: validation reads each source once; leave weight and repeat out"
    if sum(getattr(training, key) is not None for key in ("steps", "epochs", "tokens")) != 1:
        yield f"{where}: give one of steps, epochs and tokens"
