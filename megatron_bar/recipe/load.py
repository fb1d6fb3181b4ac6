"""Read a recipe: YAML, overrides from the command line, and a check of every key."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from megatron_bar.recipe.graph import TAKEN_NAMES, WITHOUT, route_training
from megatron_bar.recipe.layers import file_layers, merged, parse_overrides
from megatron_bar.recipe.methods import check_method, stage_graph
from megatron_bar.recipe.schema import Evaluate, Recipe, Training
from megatron_bar.recipe.units import token_count
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import staging_path

DTYPES = ("float32", "bfloat16")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at `path`, with dotted `key=value` overrides applied.

    Raises BarError, in one line, for a file that is missing or not YAML, a key that doesn't exist,
    a value of the wrong type, or settings that don't go together; and for several systems.
    """
    recipes = load_recipes(path, overrides)
    if len(recipes) > 1:
        raise BarError(f"recipe {path} has {len(recipes)} systems, which only megatron-bar run "
                       "takes at once; what it makes has a recipe.yaml each")
    return recipes[0]


def load_recipes(path: Path, overrides: Sequence[str] = ()) -> list[Recipe]:
    """The recipe at `path`, or one for each of its `systems`, with overrides applied to all.

    Systems are the runs NAME/SYSTEM; each may take over what those before it have made.

    Raises BarError as `load_recipe` does.
    """
    path = Path(path)
    try:
        told = parse_overrides(overrides)
        layers = file_layers(path)
        whole = merged(OmegaConf.structured(Recipe), *layers, told)
        systems = {name: _system(layers, whole, name, told) for name in whole.systems}
        recipes = _as_runs(systems) if systems else [OmegaConf.to_object(whole)]
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        raise BarError(f"recipe {path}: {' '.join(str(error).split())}") from None
    for recipe, system in zip(recipes, systems or [None]):
        _check(recipe, path if system is None else f"{path}, system {system}")
    return recipes


def _system(
    layers: Sequence[DictConfig], whole: DictConfig, name: str, told: DictConfig
) -> Recipe:
    """A system's keys go before the recipe's, the command line's before both.

    What a system extends takes the place of what its file does.
    """
    keys = whole.systems[name]
    if not _is_plain(name):
        raise ValueError(f"a system can't be called {name!r}, use another name")
    if keys is not None and not isinstance(keys, DictConfig):
        raise ValueError(f"systems.{name} is {keys!r} and should be keys of the recipe")
    keys = keys or OmegaConf.create()
    if keys.get("extends") is None:
        return OmegaConf.to_object(merged(whole, keys, told))
    saying = [i for i, layer in enumerate(layers)
              if OmegaConf.select(layer, f"systems.{name}.extends") is not None]
    above = layers[saying[-1]:] if saying else layers[-1:]  # none: the command line says it
    return OmegaConf.to_object(merged(
        OmegaConf.structured(Recipe), *file_layers(Path(keys.pop("extends"))), *above, keys, told,
    ))


def _is_plain(name: str) -> bool:
    """It can be the name of a folder, and one word of a command line."""
    return name.replace("_", "").replace("-", "").isalnum()


def _as_runs(systems: Mapping[str, Recipe]) -> list[Recipe]:
    """The recipes of all systems as runs, each with the ones before it to reuse."""
    runs: list[Recipe] = []
    for system, recipe in systems.items():
        before = [str(Path(run.runs) / run.name) for run in runs]
        runs.append(dataclasses.replace(
            recipe, name=f"{recipe.name}/{system}", systems={}, reuse=[*recipe.reuse, *before]
        ))
    return runs


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe as resolved, every default included, in one step."""
    OmegaConf.save(OmegaConf.structured(recipe), staging_path(path))
    os.replace(staging_path(path), path)


def _check(recipe: Recipe, path: Path | str) -> None:
    if (recipe.anchor is None) == (recipe.pretrain is None):
        raise BarError(f"recipe {path}: give either anchor (a Hugging Face folder) or pretrain")
    if not recipe.domains:
        raise BarError(f"recipe {path}: domains is empty; name at least one")
    recipe.layout.check()
    if recipe.pretrain is not None:
        where = f"recipe {path}: pretrain.training"
        _check_training(recipe.pretrain.training, where)
        if recipe.pretrain.training.steps is None:
            raise BarError(f"{where}: give steps, not epochs or tokens")
        if any(s.weight for s in (*recipe.pretrain.training.data, *recipe.pretrain.chat)):
            raise BarError(f"recipe {path}: pretrain mixes its sources by count, not by weight")
        if recipe.pretrain.training.validation:
            raise BarError(f"{where}: pretrain has no validation, leave it out")
    for name, domain in recipe.domains.items():
        if not _is_plain(name) or name in TAKEN_NAMES or name.startswith(WITHOUT):
            raise BarError(f"recipe {path}: a domain can't be called {name!r}, use another name")
        stages = ("midtrain", "sft", "rlvr")
        given = [key for key in stages if getattr(domain, key) is not None]
        if domain.checkpoint is not None and given:
            raise BarError(f"recipe {path}: domains.{name} has a checkpoint, so leave out "
                           f"{given[0]}; what route samples stands under routing")
        if domain.checkpoint is None and not given:
            raise BarError(f"recipe {path}: domains.{name} has neither midtrain nor sft nor rlvr")
        for key in stages:
            if (training := getattr(domain, key)) is not None:
                _check_training(training, f"recipe {path}: domains.{name}.{key}")
    try:
        check_method(recipe)
        check_evaluate(recipe.evaluate)
    except BarError as error:
        raise BarError(f"recipe {path}: {error}") from None
    routes = any(stage.kind == "route" for stage in stage_graph(recipe))
    if routes:
        _check_route(recipe, f"recipe {path}: route")
    for name in recipe.evaluate.opt_out:
        if not routes:
            raise BarError(f"recipe {path}: evaluate.opt_out is for methods that route, and the "
                           f"method is {recipe.method}")
        if name != "anchor" and name not in recipe.domains:
            raise BarError(f"recipe {path}: evaluate.opt_out names {name!r}, which is no expert; "
                           f"there are anchor, {', '.join(recipe.domains)}")


def check_evaluate(evaluate: Evaluate) -> None:
    """Raise BarError for settings that don't go together."""
    if evaluate.dtype not in (None, *DTYPES):
        raise BarError(f"evaluate.dtype {evaluate.dtype!r} is not {' or '.join(DTYPES)}")
    for key in ("max_new_tokens", "batch_size", "samples"):
        if getattr(evaluate, key) < 1:
            raise BarError(f"evaluate.{key} {getattr(evaluate, key)} is not at least 1")
    if evaluate.temperature < 0:
        raise BarError(f"evaluate.temperature {evaluate.temperature} is below 0")
    if evaluate.samples > 1 and evaluate.temperature == 0:
        raise BarError(f"evaluate.samples {evaluate.samples} at temperature 0 would be "
                       f"{evaluate.samples} times the same answer; set evaluate.temperature")
    if evaluate.layout is not None:
        evaluate.layout.check()


def _check_route(recipe: Recipe, where: str) -> None:
    route, experts = recipe.route, len(recipe.domains) + 1
    if route.training.data:
        raise BarError(f"{where}.training: data is drawn from the domains' SFT data; leave it out")
    _check_training(route_training(recipe), f"{where}.training", needs_data=False)
    if route.start not in ("stacked", "random", "centroids"):
        raise BarError(f"{where}.start {route.start!r} is not stacked, random or centroids")
    active = experts if route.active is None else route.active
    if not 1 <= active <= experts:
        raise BarError(f"{where}.active {active} is not from 1 to {experts}, the experts there are")
    if route.renormalize and active == 1:
        raise BarError(f"{where}: with active 1 renormalize gives every token's expert weight 1, "
                       "so that the router has nothing to learn from; leave it out")
    if not 0 <= route.load_balancing < float("inf"):
        raise BarError(f"{where}.load_balancing {route.load_balancing} is not 0 or more")
    if route.load_balancing and active == experts:
        raise BarError(f"{where}.load_balancing does nothing while every token goes to all "
                       f"{experts} experts; leave it out, or set active to fewer")


def _check_training(training: Training, where: str, needs_data: bool = True) -> None:
    if needs_data and not training.data:
        raise BarError(f"{where}: data is empty")
    if any(s.weight is not None or s.repeat != 1 for s in training.validation):
        raise BarError(f"{where}: validation reads each source once; leave weight and repeat out")
    if sum(x is not None for x in (training.steps, training.epochs, training.tokens)) != 1:
        raise BarError(f"{where}: give one of steps, epochs and tokens")
    if training.tokens is not None:
        try:
            token_count(training.tokens)
        except BarError as error:
            raise BarError(f"{where}: {error}") from None
    if training.overlong not in ("truncate", "drop"):
        raise BarError(f"{where}: overlong {training.overlong!r} is not truncate or drop")
    if training.schedule not in ("linear", "cosine", "constant"):
        raise BarError(f"{where}: schedule {training.schedule!r} is not linear, cosine or constant")
    if training.dtype not in (None, *DTYPES):
        raise BarError(f"{where}: dtype {training.dtype!r} is not {' or '.join(DTYPES)}")
    if training.recompute not in ("none", "moe", "full"):
        raise BarError(f"{where}: recompute {training.recompute!r} is not none, moe or full")
    if training.on_bad_step not in ("stop", "skip"):
        raise BarError(f"{where}: on_bad_step {training.on_bad_step!r} is not stop or skip")
    if not 0 <= training.warmup < 1:
        raise BarError(f"{where}: warmup {training.warmup} is not a share in [0, 1); give a number "
                       "of steps as warmup_steps")
    for key in ("sequence_length", "batch_size", "micro_batch_size", "log_every", "save_every",
                "keep", "validate_every", "max_skips"):
        if getattr(training, key) < 1:
            raise BarError(f"{where}: {key} {getattr(training, key)} is not at least 1")
    for key in ("save_every_minutes", "stop_after_minutes", "peak_tflops"):
        if getattr(training, key) is not None and getattr(training, key) <= 0:
            raise BarError(f"{where}: {key} {getattr(training, key)} is not above 0")
    if training.spike is not None and training.spike <= 1:
        raise BarError(f"{where}: spike {training.spike} is not above 1; it is a factor")
    if training.layout is not None:
        training.layout.check()
