"""Metadata of a recipe's keys, beside name, type and default.

Validation, the reference page, the search for files and the question whether a finished stage is
still what the recipe asks for all read this, and keep no lists of keys.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# What kind of file or folder a key names. `recipe/paths.py` makes it absolute, from the folder of
# the recipe's file.
FILE = "file"
PATH = "path"
PATH_OR_NAME = "path or name"  # where no such path is, a name on the Hugging Face hub
RUN = "run"  # the folder of a run; where there is none, it is one of the working directory
TEMPLATE = ".jinja"  # a path if it ends so, else a name
FUNCTION = "FILE.py:FUNCTION"  # a file and what is in it, else a name
# The key's value has the keys of a recipe.
KEYS_OF_RECIPE = "keys_of_recipe"
# What a value has to be, a `Rule`.
RULE = "rule"
# The key says how a stage is computed, and not what comes out but for rounding. A stage that is
# done stays done when it changes, and one that was cut short goes on. Where its value is ROUNDING,
# the key does change the rounding.
RUNTIME = "runtime"
ROUNDING = "rounding"
# The key was renamed: what it was called in the version before, which a recipe may still say
# (`recipe/renamed.py`).
FORMERLY = "formerly"
# The forms that a source is read in, of those below, by stages that look at the key; all if unsaid.
FORMS = "forms"
TEXTS, CHATS, PAIRS, PROMPTS, ITEMS = "texts", "chats", "pairs", "prompts", "items"
# What a stage reads where the key points, whose contents decide what it makes.
CONTENTS = "contents"
DATA_FILES, DATASET, HF_FOLDER, CHECKPOINT = "data files", "dataset", "HF folder", "checkpoint"


@dataclass(frozen=True)
class Rule:
    """A condition on a value, in words and as a function. A key that is unset isn't looked at."""

    words: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()  # where these are all there are

    def fault(self, key: str, value: Any) -> str | None:
        """The fault of the key's value, in a line, if there is one."""
        if value is None or self.holds(value):
            return None
        return f"{key} {value!r} is not {self.words}"


def one_of(*choices: str) -> Rule:
    words = f"{', '.join(choices[:-1])} or {choices[-1]}"
    return Rule(words, lambda value: value in choices, choices)


AT_LEAST_0 = Rule("0 or more", lambda value: 0 <= value < math.inf)
ABOVE_0 = Rule("above 0", lambda value: 0 < value < math.inf)
AT_MOST_1 = Rule("0 or 1", lambda value: value in (0, 1))
COUNT = Rule("at least 1", lambda value: value >= 1)
SHARE = Rule("a share from 0 to 1", lambda value: 0 <= value <= 1)
PART = Rule("in [0, 1)", lambda value: 0 <= value < 1)
SHARE_ABOVE_0 = Rule("a share above 0, up to 1", lambda value: 0 < value <= 1)
WARMUP = Rule("a share in [0, 1); give a number of steps as warmup_steps", PART.holds)
FIRST_AND_LAST = Rule(
    "a first and a last step, counted from 1, such as [10, 12]",
    lambda value: len(value) == 2 and 1 <= value[0] <= value[1],
)
FACTOR = Rule("above 1; it is a factor", lambda value: 1 < value < math.inf)


def key(default: Any, rule: Rule | None = None, /, **metadata: Any) -> Any:
    """A dataclass field with a `default`, or what a callable makes, and `metadata`.

    `runtime=True`, `file=PATH`, `forms=(TEXTS,)` and so on: the words above, in lower case.
    """
    metadata |= {RULE: rule} if rule else {}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def about(schema: type, name: str) -> Mapping[str, Any]:
    """The metadata of a field; of one with a new default, those of its parent's field."""
    for parent in schema.__mro__:
        field = vars(parent).get("__dataclass_fields__", {}).get(name)
        if field is not None and field.metadata:
            return field.metadata
    return {}


def names_with(schema: type, word: str) -> set[str]:
    """The fields whose metadata have `word`."""
    return {field.name for field in dataclasses.fields(schema) if word in about(schema, field.name)}


def faults(settings: Any, where: str) -> list[str]:
    """Faults of a dataclass's values by its keys' rules; `where` goes before keys."""
    found = []
    for field in dataclasses.fields(settings):
        rule = about(type(settings), field.name).get(RULE)
        if rule is not None and (fault := rule.fault(field.name, getattr(settings, field.name))):
            found.append(f"{where}{fault}")
    return found
