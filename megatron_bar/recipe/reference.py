"""`docs/recipe.md`: every key of a recipe, from the dataclasses and the comments beside them.

python -m megatron_bar.recipe.reference > docs/recipe.md
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_bar.recipe.fields import RULE, RUNTIME, about, names_with
from megatron_bar.recipe.renamed import renamed
from megatron_bar.recipe.schema import Recipe

_HEAD = """\
# Recipe reference

Every key a recipe may have, with its type and default. Written by `make docs` from
[`recipe/schema.py`](../megatron_bar/recipe/schema.py) and
[`recipe/training.py`](../megatron_bar/recipe/training.py); change the comments there.

`${...}` refers to another key, and `a.b=c` on the command line overrides one;
`domains.math.tasks.0.count=20` changes an item of a list, counted from 0. A key that isn't here is
refused. A row without a text belongs to the one above it. Examples:
[`toy.yaml`](../examples/toy.yaml) and its neighbours.

**Words** are what their key wants them to be. Where it wants a text, `on`, `010`, `1.10` and
`2026-11-27` are texts as written; where it wants a number, `1e-4`, `1e6` and `1_000` are numbers;
where it wants `true` or `false`, `on`, `off`, `yes` and `no` are as good. So it is in `site.yaml`
and on the command line. Anchors, aliases and `<<` work; a key that is given twice is refused.

**On top of each other**: what a file `extends` lies below it, the command line above all. Keys are
added to keys: `layout={processes: 8}` keeps a `tensor: 2` that stands below. A list takes the place
of a list, and `null` takes a part away: a domain (`domains.math=null`), one of its stages
(`domains.math.rlvr=null`), an item of a list (`domains.math.sft.data.1=null`).

**Files** (`path`, `anchor`, `chat_template`, ...) are named from the folder of the file that says
so, on the command line from the working directory; `~`, `$NAME` and `${NAME}` of the environment
are filled in. Where there is none of the name, one of the working directory is taken. A run's own
`recipe.yaml` has their whole paths, so it holds from anywhere. `runs` is a folder of the working
directory.
"""
_RUNTIME = """\
## Keys that leave finished stages alone

A stage is done again when its settings change, but for these, which say how it is computed and not
what comes out:

"""
_RENAMED = """\
## Renamed keys

What they were called in the version before is understood in this one, with a hint:

"""


@dataclass(frozen=True)
class Key:
    """One field of a dataclass, as its source has it."""

    name: str
    type: str
    default: str
    meaning: str


def reference() -> str:
    """The whole page, in Markdown."""
    sections = [_HEAD]
    for schema in _schemas(Recipe):
        rows = [
            f"| `{key.name}` | `{key.type}` | {key.default} | {key.meaning} |"
            for key in _keys(schema)
        ]
        sections.append(
            "\n".join(
                [
                    f"## {schema.__name__}",
                    "",
                    _docstring(schema),
                    "",
                    "| key | type | default | meaning |",
                    "|---|---|---|---|",
                    *rows,
                    "",
                ]
            ).replace("  |", " |")
        )
    runtime = set().union(*(names_with(schema, RUNTIME) for schema in _schemas(Recipe)))
    names = ", ".join(f"`{name}`" for name in sorted(runtime))
    return "\n".join([*sections, _RUNTIME + names + ".\n", _RENAMED + _former_names() + "\n"])


def _former_names() -> str:
    """A line for each schema that renamed keys of its own."""
    lines = []
    for schema in _schemas(Recipe):
        inherited = {former for parent in schema.__mro__[1:-1] for former in renamed(parent)}
        own = ", ".join(
            f"`{former}` is `{name}`"
            for former, name in renamed(schema).items()
            if former not in inherited
        )
        lines += [f"- {schema.__name__}: {own}"] if own else []
    return "\n".join(lines)


def _schemas(top: type) -> list[type]:
    """`top` and all dataclasses that its keys lead to, each before those it leads to."""
    found = [top]
    for schema in found:
        for hint in typing.get_type_hints(schema).values():
            for inner in _dataclasses_in(hint):
                if inner not in found:
                    found.append(inner)
    return found


def _dataclasses_in(hint: object) -> Iterator[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for argument in typing.get_args(hint):
        yield from _dataclasses_in(argument)


def _docstring(schema: type) -> str:
    text = inspect.getdoc(schema) or ""
    parents = [base for base in schema.__bases__ if dataclasses.is_dataclass(base)]
    return text + "".join(
        f"\n\nHas the keys of [{base.__name__}](#{base.__name__.lower()}) as well; below are those "
        "that are new or have another default."
        for base in parents
    )


def _keys(schema: type) -> list[Key]:
    """The fields that a class itself declares. A comment stands behind its field or above it."""
    lines = inspect.getsource(schema).splitlines()
    keys = []
    (declared,) = ast.parse("\n".join(lines)).body
    assert isinstance(declared, ast.ClassDef)
    for node in declared.body:
        if not isinstance(node, ast.AnnAssign):
            continue
        assert isinstance(node.target, ast.Name) and node.value is not None
        assert node.end_lineno is not None
        first = node.lineno - 1
        while lines[first - 1].lstrip().startswith("#"):
            first -= 1
        behind = lines[node.end_lineno - 1][node.end_col_offset :]
        comments = [*lines[first : node.lineno - 1], behind]
        meaning = " ".join(comment.strip().lstrip("# ") for comment in comments).strip()
        rule = about(schema, node.target.id).get(RULE)
        if rule is not None and rule.choices:
            meaning = ". ".join(filter(None, [rule.words, meaning]))
        keys.append(
            Key(
                node.target.id,
                _cell(ast.unparse(node.annotation)),
                _default(node.value, "\n".join(lines)),
                _cell(meaning),
            )
        )
    return keys


def _default(value: ast.expr, source: str) -> str:
    """As a recipe would write it."""
    if isinstance(value, ast.Call):  # field(default_factory=...) or key(...)
        made = value.args[0] if value.args else value.keywords[0].value
        if not isinstance(made, ast.Name):
            return _default(made, source)
        return {"list": "`[]`", "dict": "`{}`"}.get(made.id, "its defaults")
    default = ast.literal_eval(value)
    if default is None:
        return ""
    if default == "???":
        return "required"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default if isinstance(default, str) else ast.get_source_segment(source, value)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
