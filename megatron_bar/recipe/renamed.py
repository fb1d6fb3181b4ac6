"""Keys that were renamed: what they were called in the version before is understood in this one.

A field says it, as `key(0.0, SHARE, formerly="floor")`. A recipe with the old name is read with a
hint; what a stage recorded under it is the new key's value, so that finished stages stay finished.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from megatron_bar.recipe.fields import FORMERLY, about
from megatron_bar.runtime.console import warn
from megatron_bar.runtime.ranks import is_main


@functools.cache
def renamed(schema: type) -> dict[str, str]:
    """The present name of each renamed key of a dataclass, by its former one."""
    names = (field.name for field in dataclasses.fields(schema))
    return {former: name for name in names if (former := about(schema, name).get(FORMERLY))}


def with_present_names(schema: type, keys: Mapping[str, Any]) -> dict[str, Any]:
    """`keys` of the dataclass `schema` as they are called now."""
    names = renamed(schema)
    return {names.get(key, key): value for key, value in keys.items()}


@functools.cache
def tell_renamed(place: str, former: str, present: str) -> None:
    """Tell the user about a former name, one time for each place where it is first met."""
    if is_main():
        warn(f"{place}: {former} is called {present} now; the next version will refuse {former}")
