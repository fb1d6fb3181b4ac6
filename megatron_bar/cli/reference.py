"""`docs/commands.md`: every command with its options, from the parser.

python -m megatron_bar.cli.reference > docs/commands.md
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from megatron_bar.cli.help_texts import EXAMPLES
from megatron_bar.cli.parser import build_parser

_HEAD = """\
# Commands

Every command with all that it takes, as `megatron-bar COMMAND --help` tells it. Written by
`make docs` from [`cli/options/`](../megatron_bar/cli/options/__init__.py) and
[`cli/help_texts.py`](../megatron_bar/cli/help_texts.py); change the words there.

`key=value` changes a key of the recipe for this one time: [recipe.md](recipe.md) has all of them.
How they end: [what messages mean](troubleshooting.md).
"""
_EXAMPLE = re.compile(r"^  (\S.*)$")


def reference() -> str:
    """The whole page, in Markdown."""
    sections = [_HEAD]
    for name, summary, parser in _commands(build_parser()):
        rows = [
            f"| {_called(action)} | {_cell(_said(parser, action))} |"
            for action in parser._actions
            if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)
        ]
        table = ["| takes | |", "|---|---|", *rows, ""] if rows else []
        sections.append(
            "\n".join(
                [
                    f"## {name}",
                    "",
                    f"{summary[0].upper()}{summary[1:]}.",
                    "",
                    *table,
                    _text(EXAMPLES[name]),
                ]
            )
        )
    return "\n".join(sections)


def _commands(
    parser: argparse.ArgumentParser, above: str = ""
) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """The commands that do something, each with its whole name and what it is said to do."""
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, inner in action.choices.items():
            below = list(_commands(inner, f"{above}{name} "))
            yield from below or [(above + name, summaries[name], inner)]


def _said(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Its help, with defaults filled in as --help does it."""
    return parser._get_formatter()._expand_help(action) if action.help else ""


def _called(action: argparse.Action) -> str:
    """How an argument is written on the command line."""
    value = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    if not action.option_strings:
        return f"`{value}`"
    if action.nargs == 0:
        return ", ".join(f"`{name}`" for name in action.option_strings)
    more = " ..." if action.nargs == "+" else ""
    return ", ".join(f"`{name} {value}{more}`" for name in action.option_strings)


def _text(text: str) -> str:
    """Paragraphs as they are, indented examples as code, with # before what is said of them."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        found = _EXAMPLE.match(line) or (inside and re.match("^  ( .*)$", line))
        if bool(found) != inside and (found or line):
            inside = bool(found)
            lines.append("```")
        lines.append(re.sub(r"(\S) {2,}(?=[\w(])", r"\1    # ", found[1]) if found else line)
    return "\n".join([*lines, *["```"] * inside, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
