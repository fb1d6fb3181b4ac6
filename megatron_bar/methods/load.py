"""Read a recipe: files on top of each other, overrides from the command line, a check of it all."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from megatron_bar.methods.structure import is_plain, structure_faults
from megatron_bar.methods.values import value_faults
from megatron_bar.recipe.layers import (
    file_layers,
    merged,
    overridden,
    parse_overrides,
    resolved,
)
from megatron_bar.recipe.paths import all_located
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.errors import BarError, raise_all
from megatron_bar.runtime.files import staging_path


def load_recipe(
    path: Path, overrides: Sequence[str] = (), values: bool = True, where: str | None = None
) -> Recipe:
    """The recipe at `path`, with dotted `key=value` overrides applied.

    Raises BarError, with a line for each fault, for a file that is missing or not YAML, keys that
    don't exist, values of the wrong type, and settings that don't go together; and for several
    systems. Values that can't be are reported too, unless `values` is false, for a check of all
    there is. Messages begin with `where`, or with the file.
    """
    recipes = load_recipes(path, overrides, values, where)
    if len(recipes) > 1:
        raise BarError(
            f"{where or f'recipe {path}'} has {len(recipes)} systems, which only "
            "megatron-bar run takes at once; what it makes has a recipe.yaml each"
        )
    return recipes[0]


def load_recipes(
    path: Path, overrides: Sequence[str] = (), values: bool = True, where: str | None = None
) -> list[Recipe]:
    """The recipe at `path`, or one for each of its `systems`, with overrides applied to all.

    Systems are the runs NAME/SYSTEM; each may take over what those before it have made.

    Raises BarError as `load_recipe` does.
    """
    path = Path(path)
    where = where or f"recipe {path}"
    layers = file_layers(path)
    overriding = parse_overrides(overrides)
    # Each system gets the command line's keys once, after its own: null takes away once only.
    of_systems = [{"systems": layer.pop("systems")} for layer in overriding if "systems" in layer]
    whole = merged(where, OmegaConf.structured(Recipe), *layers, *of_systems)
    if not whole.systems:
        recipes = {where: resolved(merged(where, whole, *overriding), where)}
    else:
        recipes = {
            f"{where}, system {name}": _system(where, layers, whole, name, overriding)
            for name in whole.systems
        }
    faults = {
        place: structure_faults(recipe, of_run=_run_of(path)) for place, recipe in recipes.items()
    }
    if values and not any(faults.values()):
        faults = {place: value_faults(recipe) for place, recipe in recipes.items()}
    raise_all([f"{place}: {line}" for place, lines in faults.items() for line in lines])
    runs = list(recipes.values())
    if whole.systems:
        runs = _as_runs(whole.systems, runs)
    return [all_located(recipe) for recipe in runs]


def settled_recipe(recipe: Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe that was made in Python, as `load_recipe` returns one of a file.

    Raises BarError, with a line for each fault, for values of the wrong type and settings that
    don't go together.
    """
    where = f"recipe {recipe.name}"
    recipe = overridden(recipe, overrides, where)
    if recipe.extends is not None or recipe.systems:
        raise BarError(f"{where}: extends and systems are keys of files; load such a recipe")
    raise_all([f"{where}: {line}" for line in structure_faults(recipe)])
    return all_located(recipe)


def _system(
    where: str,
    layers: Sequence[Mapping[str, Any]],
    whole: DictConfig,
    name: str,
    overriding: Sequence[Mapping[str, Any]],
) -> Recipe:
    """A system's keys go before the recipe's, the command line's before both.

    What a system extends takes the place of what its file does.
    """
    if not is_plain(name):
        raise BarError(f"{where}: a system can't be called {name!r}, use another name")
    where = f"{where}, system {name}"
    keys: Any = OmegaConf.to_container(whole.systems[name] or OmegaConf.create())
    extended = keys.pop("extends", None)
    if extended is None:
        return resolved(merged(where, whole, keys, *overriding), where)
    saying = [number for number, layer in enumerate(layers) if _extends(layer, name)]
    above = layers[saying[-1] :] if saying else layers[-1:]  # none: the command line says it
    start = OmegaConf.structured(Recipe)
    layers = [*file_layers(Path(extended)), *above, keys, *overriding]
    return resolved(merged(where, start, *layers), where)


def _extends(layer: Mapping[str, Any], system: str) -> bool:
    keys = (layer.get("systems") or {}).get(system) or {}
    return keys.get("extends") is not None


def _run_of(path: Path) -> str | None:
    """The folder's name, where this may be the recipe that stands in a run's own folder."""
    return path.resolve().parent.name if path.name == "recipe.yaml" else None


def _as_runs(systems: Sequence[str], recipes: Sequence[Recipe]) -> list[Recipe]:
    """The recipes of all systems as runs, each with the ones before it to reuse."""
    runs: list[Recipe] = []
    for system, recipe in zip(systems, recipes):
        before = [str(Path(run.runs) / run.name) for run in runs]
        runs.append(
            dataclasses.replace(
                recipe, name=f"{recipe.name}/{system}", systems={}, reuse=[*recipe.reuse, *before]
            )
        )
    return runs


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe as resolved, every default included, in one step."""
    OmegaConf.save(OmegaConf.structured(recipe), staging_path(path))
    os.replace(staging_path(path), path)
