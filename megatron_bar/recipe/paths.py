"""Files of a recipe: named from the folder of the recipe, found from anywhere."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from megatron_bar.recipe.fields import FILE, FUNCTION, PATH, PATH_OR_NAME, RUN, TEMPLATE

# ${NAME} of the environment; recipe keys, which ${...} refers to as well, have no capitals.
_VARIABLE = re.compile(r"\$(?:(\w+)|\{([A-Z_][A-Z0-9_]*)\})")
# Where a path begins to depend on more than the files there are: a pattern, or another key.
_OPEN = re.compile(r"\$\{|[*?\[]")


def located(text: str, folder: Path, kind: str | None) -> str:
    """The absolute path that `text` names from `folder`, that of the file which says it.

    Where nothing is there, but from the working directory is, it is that. ~ and $NAME are expanded.
    A text that is no path of this `kind` (a name of the hub, of a template or of a verifier, or one
    that another key begins) is returned as it is.
    """
    if kind is None or not text:
        return text
    if kind == FUNCTION:
        if (found := function_in(text)) is None:
            return text
        path, function = found
        return ":".join(filter(None, (located(path, folder, PATH), function)))
    named = os.path.expanduser(_VARIABLE.sub(_from_environment, text))
    if named.startswith("${") or (kind == TEMPLATE and not named.endswith(TEMPLATE)):
        return named
    here, there = os.path.abspath(folder / named), os.path.abspath(named)
    if _exists(folder, named):
        return here
    if _exists(Path(), named):
        return there
    if kind == PATH_OR_NAME and not named.startswith((".", "/")):
        return named
    return there if kind == RUN else here


def function_in(named: str) -> tuple[str, str] | None:
    """The file and the function of FILE.py:FUNCTION, which may be missing; None for other names."""
    path, _, function = named.rpartition(":")
    if path.endswith(".py"):
        return path, function
    return (named, "") if named.endswith(".py") else None


def all_located(settings: Any) -> Any:
    """Settings with the paths in them that were still open, `${...}/x`, as named from here."""
    if isinstance(settings, dict):
        return {key: all_located(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [all_located(value) for value in settings]
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        return settings
    found = {}
    for field in dataclasses.fields(settings):
        value, kind = getattr(settings, field.name), field.metadata.get(FILE)
        if kind is None or value is None:
            found[field.name] = all_located(value)
        elif isinstance(value, list):
            found[field.name] = [located(each, Path(), kind) for each in value]
        else:
            found[field.name] = located(value, Path(), kind)
    return dataclasses.replace(settings, **found)


def _from_environment(match: re.Match[str]) -> str:
    return os.environ.get(match[1] or match[2], match[0])


def _exists(folder: Path, named: str) -> bool:
    """Whether it is there; of a path that is open, whether the folder is in which it gets so."""
    fixed = _OPEN.split(named)[0]
    return (folder / named).exists() or (
        fixed != named and (folder / os.path.dirname(fixed)).is_dir()
    )
