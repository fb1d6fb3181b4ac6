"""YAML as people mean it: every word keeps the text it was written with, and its line.

YAML 1.1, which most loaders read, takes 12:00:00 for 43,200, 012345 for 5349, `on` for true and
2026-11-27 for a date. Here only null, true, false and the numbers of YAML 1.2 are more than text,
and only where no field says what it wants (`recipe/typed.py`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from megatron_bar.runtime.errors import BarError

_TAG = "tag:yaml.org,2002:"
NULL, TEXT = _TAG + "null", _TAG + "str"
# YAML 1.2's core schema, and merge keys, which people use.
_CORE = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)"
    r"|\.(nan|NaN|NAN)",
    "merge": "<<",
}

_MARKS = ("*", "&", "!", "%", "@", "`")


# The parser written in C is there in most installations, and several times as fast.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    yaml_implicit_resolvers: ClassVar[dict] = {}


for _name, _pattern in _CORE.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})$"), None)


@dataclass(frozen=True)
class Document:
    """The content of a file, or of a word of the command line, with its place for messages.

    `root` is None where nothing is written.
    """

    root: yaml.Node | None
    source: str
    has_lines: bool = True

    def at(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}" if self.has_lines else self.source

    def plain(self) -> Any:
        """The whole of it as dicts, lists, texts, numbers, booleans and None."""
        return None if self.root is None else plain(self.root)


def read_yaml(path: Path, what: str) -> Document:
    """The YAML at `path`, called `what` in messages.

    Raises BarError, with the line, for a file that isn't there or isn't YAML, and for a key that is
    given twice.
    """
    if not path.is_file():
        raise BarError(f"{what} {path} doesn't exist")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BarError(
            f"{what} {path} is not text in UTF-8: {error.reason} at byte {error.start}"
        ) from None
    except OSError as error:
        raise BarError(f"{what} {path} can't be read: {error.strerror}") from None
    return _document(text, f"{what} {path}")


def parse_yaml(text: str, source: str) -> Document:
    """The YAML in one word of the command line, null if it is empty. Raises as `read_yaml` does.

    A word that begins with what a file would need quotes for, such as *.jsonl, is a text.
    """
    if text.startswith(_MARKS):
        return Document(yaml.ScalarNode(TEXT, text), source, has_lines=False)
    document = _document(text, source, has_lines=False)
    return dataclasses.replace(document, root=document.root or yaml.ScalarNode(NULL, text))


def _document(text: str, source: str, has_lines: bool = True) -> Document:
    loader = _Loader(text)
    try:
        document = Document(loader.get_single_node(), source, has_lines)
        if document.root is not None:
            _settle(document, document.root, loader, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark and has_lines else ""
        what = error.problem or error.context
        raise BarError(f"{source}{line}: this is not YAML: {' '.join(what.split())}") from None
    except yaml.YAMLError as error:
        raise BarError(f"{source}: this is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise BarError(f"{source}: this is nested too deep") from None
    finally:
        loader.dispose()
    return document


def _settle(document: Document, node: yaml.Node, loader: Any, above: tuple[int, ...]) -> None:
    """Refuse keys that are given twice, tags and circles; put what `<<` merges in its place."""
    if id(node) in above:
        raise BarError(f"{document.at(node)}: an anchor refers to itself")
    if not node.tag.startswith(_TAG) or node.tag.removeprefix(_TAG) not in (
        *_CORE,
        "str",
        "seq",
        "map",
    ):
        raise BarError(
            f"{document.at(node)}: the tag {node.tag.replace(_TAG, '!!')} means nothing here"
        )
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _settle(document, item, loader, above)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, str] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise BarError(f"{document.at(key)}: a key is a word, not a list or keys")
            if key.value in lines:
                raise BarError(f"{document.at(key)}: {key.value} is given twice{lines[key.value]}")
            lines[key.value] = (
                f", the first time in line {key.start_mark.line + 1}" if document.has_lines else ""
            )
            _settle(document, value, loader, above)
        loader.flatten_mapping(node)
        # Merged keys stand first, so that the mapping's own win.
        node.value = list({key.value: (key, value) for key, value in node.value}.values())


def plain(node: yaml.Node) -> Any:
    """`node` as YAML 1.2 has it. Keys are texts."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [plain(item) for item in node.value]
    return _SCALARS[node.tag.removeprefix(_TAG)](node.value)


def _whole(text: str) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _number(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _whole,
    "float": _number,
    "str": str,
    "merge": str,
}


def under(keys: Sequence[str], node: yaml.Node) -> yaml.Node:
    """`node` as the value of the last of `keys`, each within the one before it."""
    for key in reversed(keys):
        mark = node.start_mark
        node = yaml.MappingNode(
            _TAG + "map", [(yaml.ScalarNode(TEXT, key, mark, mark), node)], mark, mark
        )
    return node
