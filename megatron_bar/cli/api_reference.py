"""`docs/api.md`: the public names of the package, with what they take, from their docstrings.

python -m megatron_bar.cli.api_reference > docs/api.md
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import megatron_bar
from megatron_bar.recipe import schema

_HEAD = """\
# Python API, name by name

What `megatron_bar.__all__` names, in that order. Written by `make docs` from the docstrings; change
them there.
"""


def reference() -> str:
    """The whole page, in Markdown."""
    found = [(name, getattr(megatron_bar, name)) for name in getattr(megatron_bar, "__all__", ())]
    return "\n".join([_HEAD, *(_section(name, value) for name, value in found)])


def _section(name: str, value: Any) -> str:
    if getattr(schema, name, None) is value:
        return f"## {name}\n\n{_words(value)}\n\nIts keys: [recipe.md](recipe.md#{name.lower()}).\n"
    if not inspect.isclass(value):
        return f"## {name}\n\n```python\n{_called(name, value)}\n```\n\n{_words(value)}\n"
    head = f"```python\n{_called(name, value)}\n```\n\n" if dataclasses.is_dataclass(value) else ""
    return "\n".join([f"## {name}\n\n{head}{_words(value)}\n", *_members(name, value)])


def _members(name: str, value: type) -> Iterator[str]:
    """The public methods and properties that a class has itself."""
    for member, attribute in vars(value).items():
        if member.startswith("_"):
            continue
        if isinstance(attribute, classmethod | staticmethod):
            attribute = attribute.__func__
        if isinstance(attribute, property):
            yield f"**`{name}.{member}`** {_words(attribute)}\n"
        elif inspect.isfunction(attribute):
            called = _called(f"{name}.{member}", attribute)
            yield f"```python\n{called}\n```\n\n{_words(attribute)}\n"


def _called(name: str, value: Any) -> str:
    """How it is called, an argument a line where that is long."""
    signature = inspect.signature(value)
    arguments: list[str] = []
    only_by_name = False
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not only_by_name:
            only_by_name = True
            arguments.append("*")
        stars: dict[Any, str] = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        text = stars.get(parameter.kind, "") + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {_type(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {_default(parameter.default)}"
        arguments.append(text)
    returns = (
        ""
        if inspect.isclass(value) or signature.return_annotation is signature.empty
        else f" -> {_type(signature.return_annotation)}"
    )
    line = f"{name}({', '.join(arguments)}){returns}"
    if len(line) <= 88:
        return line
    return "\n".join([f"{name}(", *(f"    {argument}," for argument in arguments), f"){returns}"])


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _default(value: Any) -> str:
    """As a call would write it; one that is made for each call is shown as dots."""
    text = repr(value)
    return "..." if text.startswith("<") or " at 0x" in text else text


def _words(value: Any) -> str:
    """Its docstring, in which indented lines are code."""
    lines: list[str] = []
    inside = False
    for line in (inspect.getdoc(value) or "").splitlines():
        if bool(line.startswith("    ")) != inside and line.strip():
            inside = not inside
            lines.append("```python" if inside else "```")
        lines.append(line.removeprefix("    ") if inside else line)
    return "\n".join([*lines, *["```"] * inside])


if __name__ == "__main__":
    print(reference(), end="")
