"""Finds the code in an answer, in linear time, without parsing what a model wrote.

What is code can be read in several ways, such as a fence within a text of the program. So there may
be several candidates, best first, of which the sandbox runs the first that is Python: deep nesting
can crash a parser, which must not be the trainer's.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_PYTHON = ("py", "python", "python3", "python2", "py3")
_INDENT = "    "
_READINGS = 4  # of one block: up to its first closing fence, or a later one
# Left at the end by servers that don't take it away.
_END_TOKENS = re.compile(r"(?:<\|[\w ]{1,30}\|>|</s>)\s*\Z")
_END_LENGTH = 64  # characters, more than such a token has
_END_TOKENS_AT_MOST = 8
_OPENING_TAG = re.compile(r"^[ \t]*\[(?:PYTHON|BEGIN)\]", re.MULTILINE)
_CLOSING_TAG = re.compile(r"\[/PYTHON\]|^[ \t]*\[DONE\]", re.MULTILINE)
_LIST_MARK = re.compile(r"[ \t]*(?:>[ \t]*)?(?:[-*+][ \t]+|\d{1,9}[.)][ \t]+)?\Z")
_LANGUAGE = re.compile(r"[{.\s]*(\w*)")
_DEFINED = re.compile(
    r"^(?:async[ \t]++)?(?:def|class)[ \t]++(\w++)|^(\w++)[ \t]*+(?::[^=\n]*+)?=(?!=)"
    r"|^(?:from[ \t]++\S++[ \t]++)?import[ \t]++([^\n]*+)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class _Block:
    text: str
    tagged: bool  # as Python
    closed: bool
    longer: Sequence[str] = ()  # other readings: up to later fences


def extract(response: str, names: Sequence[str] = ()) -> list[str]:
    """The candidates for the response's code, best first.

    That is the last block of those that define most of `names`, whole ones before one that was cut
    off, and without names those marked as Python before the others; joined with the blocks that
    define what it uses. Without any block it is the whole response.
    """
    text = _answer(response)
    blocks = _blocks(text)
    if not blocks:
        return [text]

    def rank(place: int) -> tuple[int, bool, bool, int]:
        block = blocks[place]
        defined = len(defined_names(block.text) & set(names)) if names else 0
        return defined, block.closed, block.tagged and not defined, place

    best = max(range(len(blocks)), key=rank)
    candidates = [_joined(blocks, best), *blocks[best].longer]
    if not any(block.closed for block in blocks):
        # The prompt may have opened the block that the answer's only fence closes.
        candidates.append(re.split(r"^[ \t]*(?:```|~~~)", text, maxsplit=1, flags=re.MULTILINE)[0])
    return [candidate for candidate in candidates if candidate.strip()] or [text]


def complete(stub: str, name: str, sources: Iterable[str]) -> list[str]:
    """The candidates for a whole program. Each source is all of function `name`, or its body.

    `stub`: imports, helpers and the function's head. A body may have lost the indentation of its
    first line, or of all.
    """
    stub = stub.rstrip() + "\n" if stub.strip() else ""
    last = stub.splitlines()[-1] if stub else ""
    indent = last[: len(last) - len(last.lstrip())] or _INDENT
    whole = []
    for source in sources:
        if name in defined_names(source):
            whole += [f"{stub}\n{source}", source]
        else:
            body = source.lstrip("\r\n")
            if body[:1].isspace():
                whole.append(stub + body)
            whole += [
                stub + indent + body.lstrip(),
                stub + textwrap.indent(textwrap.dedent(body), indent),
            ]
    return whole


def defined_names(source: str) -> set[str]:
    """The names that the source's lines at the left margin define, by their looks."""
    names: set[str] = set()
    for function, variable, imported in _DEFINED.findall(source):
        names.update(re.findall(r"\w+", imported) or [function or variable])
    return names


def _answer(response: str) -> str:
    """The response without what was thought before and tokens after, with fences for other tags."""
    text = response.rpartition("</think>")[2].partition("<think>")[0]
    for _ in range(_END_TOKENS_AT_MOST):
        if end := _END_TOKENS.search(text, max(0, len(text) - _END_LENGTH)):
            text = text[: end.start()]
    fences = ("", "") if "```" in text or "~~~" in text else ("```python\n", "\n```\n")
    for tag, fence in zip((_OPENING_TAG, _CLOSING_TAG), fences):
        text = tag.sub("\n" + fence, text)
    return text


def _blocks(text: str) -> list[_Block]:
    """The blocks of Python, and those that say of no language that they are."""
    lines = text.split("\n")
    closings = {number: found for number, line in enumerate(lines) if (found := _closing(line))}
    numbers = list(closings)
    blocks: list[_Block] = []
    place = passed = 0
    while place < len(lines):
        opening = _opening(lines[place])
        place += 1
        if opening is None:
            continue
        indent, fence, language = opening
        while passed < len(numbers) and numbers[passed] < place:
            passed += 1
        ends = []
        for number in numbers[passed : passed + 4 * _READINGS]:
            depth, closing = closings[number]
            if closing.startswith(fence) and depth <= indent + 3:
                ends.append(number)
        ends = ends[:_READINGS]
        end = ends[0] if ends else len(lines)
        if not ends:
            lines[-1] = lines[-1].rstrip().removesuffix(fence)
        if not language or language in _PYTHON:
            readings = [_dedented(lines[place:number], indent) for number in ends or [end]]
            blocks.append(_Block(readings[0], bool(language), bool(ends), readings[1:]))
        place = end + 1
    return blocks


def _opening(line: str) -> tuple[int, str, str] | None:
    """Indentation, fence and language of a line that opens a block; text may stand before it."""
    start = max(line.rfind("```"), line.rfind("~~~"))
    if start < 0:
        return None
    before = line[:start].rstrip(line[start])
    fence, named = line[len(before) : start + 3], _LANGUAGE.match(line, start + 3)
    language = named[1].lower() if named else ""
    if _LIST_MARK.match(before):
        return len(before), fence, language
    glued = language in _PYTHON or not line[start + 3 :].strip()
    return (0, fence, language) if glued and fence not in before else None


def _closing(line: str) -> tuple[int, str] | None:
    """Indentation and fence of a line that may close a block: nothing follows, but tags."""
    text = line.strip()
    for mark in "`~":
        rest = text.lstrip(mark)
        if len(text) - len(rest) >= 3 and (not rest or rest[0] == "<"):
            return len(line) - len(line.lstrip()), text[: len(text) - len(rest)]
    return None


def _dedented(lines: Sequence[str], indent: int) -> str:
    """A block's text; one that stands in a list has the list's indentation."""
    kept = (line[min(indent, len(line) - len(line.lstrip())) :] for line in lines)
    return textwrap.dedent("\n".join(kept))


def _joined(blocks: Sequence[_Block], best: int) -> str:
    """The best block with others that define names it uses: those before it, then those after."""
    chosen = {best}
    needed, found = _needs(blocks[best].text)
    for place in [*reversed(range(best)), *range(best + 1, len(blocks))]:
        text = blocks[place].text
        if blocks[place].closed and defined_names(text) & needed - found:
            chosen.add(place)
            uses, defines = _needs(text)
            needed, found = needed | uses, found | defines
    return "\n".join(blocks[place].text for place in sorted(chosen))


def _needs(source: str) -> tuple[set[str], set[str]]:
    return set(re.findall(r"\w+", source)), defined_names(source)
