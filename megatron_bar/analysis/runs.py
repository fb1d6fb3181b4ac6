"""Files that the stages of a run left on disk, in the order of the recipe.

A run may hold the folders of domains that its recipe no longer names; they are left out.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from megatron_bar.recipe.names import ALL, ANCHOR, EXPORTED, MERGED, ROUTED, WITHOUT, parts_of_model
from megatron_bar.recipe.schema import Domain
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json
from megatron_bar.runtime.plain_yaml import read_yaml

_STARTS = ("base", "anchor", "pretrained")
# A domain's stages are called as their keys in the recipe, which stand in the order of training.
_OF_DOMAIN = [key.name for key in fields(Domain)]
_ENDS = (MERGED, ROUTED, EXPORTED, "evaluate", "report")


def read_recipe(run: Path) -> dict[str, Any]:
    """RUN/recipe.yaml as it stands, {} where there is none.

    It isn't checked against the schema: the report of an older version's run can still be written.

    Raises BarError if it isn't YAML with keys.
    """
    path = Path(run) / "recipe.yaml"
    if not path.is_file():
        return {}
    recipe = read_yaml(path, "recipe").plain()
    if not isinstance(recipe, dict) or not isinstance(recipe.get("domains") or {}, dict):
        raise BarError(f"recipe {path}: domains are missing or no mapping")
    return recipe


def stage_names(run: Path, file_name: str) -> list[str]:
    """The stages whose folder holds `file_name`, in the order of the recipe."""
    run = Path(run)
    paths = [*run.glob(f"*/{file_name}"), *run.glob(f"*/*/{file_name}")]
    domains = list(read_recipe(run).get("domains") or {})
    places = {}
    for path in paths:
        name = path.parent.relative_to(run).as_posix()
        if place := _place(name, domains):
            places[name] = place
    return sorted(places, key=lambda name: places[name])


def read_stages(run: Path) -> list[dict[str, Any]]:
    """stage.json of every stage that is done, in the order of the recipe."""
    return [read_json(Path(run) / name / "stage.json") for name in stage_names(run, "stage.json")]


def _place(name: str, domains: list[str]) -> tuple | None:
    """What to sort a stage by; None for one that isn't the recipe's.

    Without a recipe every domain counts, by name.
    """
    head, _, tail = name.partition("/")
    if head in _STARTS:
        return 0, _STARTS.index(head)
    if head == "evaluate":
        model = _model(tail, domains)
        return model and (3, _ENDS.index(head), model)
    if head in _ENDS:
        return 3, _ENDS.index(head)
    step = _OF_DOMAIN.index(tail) if tail in _OF_DOMAIN else -1  # its branch, which has no key
    domain = (2,) if head == ALL else _domain(head, domains)
    return domain and (*domain, step, tail)


def _model(name: str, domains: list[str]) -> tuple | None:
    """What to sort an evaluated model by."""
    if name.startswith(WITHOUT):
        expert = name.removeprefix(WITHOUT)
        return (5, name) if expert == ANCHOR or _domain(expert, domains) else None
    trained, after = parts_of_model(name)
    models = {ANCHOR: (0,), ALL: (2,), MERGED: (3,), ROUTED: (4,)}
    place = models.get(trained) or _domain(trained, domains)
    last = len(_OF_DOMAIN)
    return place and (*place, _OF_DOMAIN.index(after) if after in _OF_DOMAIN else last)


def _domain(name: str, domains: list[str]) -> tuple | None:
    if not domains:
        return 1, name
    return (1, domains.index(name)) if name in domains else None
