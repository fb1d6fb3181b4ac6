"""Which settings decide what a stage makes; the others don't make it stale."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_bar.recipe.renamed import with_present_names
from megatron_bar.recipe.schema import HOW_NOT_WHAT, Rlvr, Source, Training

# Settings that a kind of stage is given and doesn't read: texts have no chat template, ...
_NOT_READ = {"midtrain": ("chat_template",)}
# ... and of a source each kind reads texts, conversations, or prompts with their references.
_NOT_READ_OF_SOURCES = {
    "midtrain": ("messages_column", "verifier", "reference_column"),
    "sft": ("text_column", "verifier", "reference_column"),
    # It takes the same share of each source, however a domain mixes them.
    "route": ("text_column", "verifier", "reference_column", "weight", "repeat"),
    "rlvr": ("text_column",), "evaluate": ("text_column",),
}


def deciding(settings: Mapping[str, Any], kind: str = "") -> dict[str, Any]:
    """What of the settings of a kind of stage, or of a whole recipe, decides what is made.

    They may be those that a stage was made with by an earlier version: keys that weren't there then
    are at their default.
    """
    left_out = _NOT_READ.get(kind, ())
    return {key: _deciding(kind, value) for key, value in settings.items() if key not in left_out}


def _deciding(kind: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_deciding(kind, inner) for inner in value]
    if not isinstance(value, dict):
        return value
    left_out: tuple[str, ...] | frozenset[str] = ()
    if "trainable" in value:
        schema = Rlvr if "prompts_per_step" in value else Training
        value = _defaults(schema) | with_present_names(schema, value)
        left_out = HOW_NOT_WHAT
    elif {"path", "hub", "toy"} <= value.keys():
        value = _defaults(Source) | value
        left_out = _NOT_READ_OF_SOURCES.get(kind, ())
        # The name is for logs, unless a draw depends on it.
        if kind == "route" or value["weight"] is not None:
            value["name"] = value["name"] or _usual_name(value)
        else:
            left_out = (*left_out, "name")
    return {key: _deciding(kind, inner) for key, inner in value.items() if key not in left_out}


def _usual_name(source: Mapping[str, Any]) -> str | None:
    """As `data.sources.source_name` has it, for sources that may be wrong too."""
    path, hub = source["path"], source["hub"]
    return Path(path).stem if path else Path(hub).name if hub else source["toy"]


@functools.cache
def _defaults(schema: type) -> dict[str, Any]:
    return dataclasses.asdict(schema())
