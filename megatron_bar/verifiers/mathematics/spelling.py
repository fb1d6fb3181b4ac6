"""One spelling for what Unicode, LaTeX and Markdown write in many ways."""

# ruff: noqa: RUF001 (signs that are to be told apart)
from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

# Characters that mean the same as others, whatever surrounds them.
_SAME = {
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d",
    " ": "\t\u00a0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u202f\u205f\u3000",
    "": "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff",
    "'": "\u2018\u2019\u02bc",
    '"': "\u201c\u201d",
    "/": "\u00f7\u2044\u2215",
    "=": "\uff1d",
    ",": "\uff0c",
    ":": "\u2236\uff1a",
    "+": "\uff0b",
    "(": "\uff08",
    ")": "\uff09",
    "<": "\uff1c",
    ">": "\uff1e",
    "%": "\uff05",
    ".": "\uff0e",
    "$": "\uff04",
}
CHARACTERS = str.maketrans(
    {
        **{other: one for one, others in _SAME.items() for other in others},
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
    }
)
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺"
_SYMBOLS = str.maketrans(
    {
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "∙": r"\cdot ",
        "π": r"\pi ",
        "∞": r"\infty ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "⩽": r"\le ",
        "⩾": r"\ge ",
        "≠": r"\ne ",
        "±": r"\pm ",
        "∈": r"\in ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∅": r"\emptyset ",
        "°": r"^\circ ",
        "…": r"\ldots ",
        "√": r"\sqrt ",
        "θ": r"\theta ",
        "½": r" \frac{1}{2}",
        "⅓": r" \frac{1}{3}",
        "⅔": r" \frac{2}{3}",
        "¼": r" \frac{1}{4}",
        "¾": r" \frac{3}{4}",
        "⅕": r" \frac{1}{5}",
        "⅛": r" \frac{1}{8}",
        "⅜": r" \frac{3}{8}",
        "⅝": r" \frac{5}{8}",
        "⅞": r" \frac{7}{8}",
    }
)
_RAISED = re.compile(f"[{_SUPERSCRIPTS}]+")
_LOWERED = str.maketrans(_SUPERSCRIPTS, "0123456789-+")

# Commands that mean the same as others, or nothing.
_ALIKE = {
    r"\frac": "dfrac tfrac cfrac",
    r"\boxed": "fbox",
    r"\ldots ": "dots cdots ddots dotsc",
    r"\text": "textbf textit textrm textsf texttt mbox mathrm mathbf mathit mathsf boldsymbol bm",
    r"\le ": "leq leqslant",
    r"\ge ": "geq geqslant",
    r"\ne ": "neq",
    "<": "lt",
    ">": "gt",
    r"\emptyset ": "varnothing",
    r"\{": "lbrace",
    r"\}": "rbrace",
    r"^\circ ": "degree",
    " ": "quad qquad",
    "": "left right big Big bigg Bigg bigl bigr displaystyle textstyle limits",
}
_RENAMED = {other: one for one, others in _ALIKE.items() for other in others.split()}
# A pair of backslashes ends a row of a matrix; it comes first, so that nothing splits it.
_COMMAND = re.compile(r"\\\\|\\([A-Za-z]+)")
_REWRITTEN = [
    (re.compile(r"\\\\|" + pattern), instead)
    for pattern, instead in (
        (r"\\!", ""),
        (r"\{,\}", ","),
        (r"\\[,;: ]|~", " "),
        (r"\\([$%#&_])", r"\1"),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"\*\*", "^"),
        (r"\^\{(\w)\}(?!\w)", r"^\1"),
    )
]
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_PLAIN_NAMES = re.compile(r"(?<![\\A-Za-z])(sqrt|pi|infinity|inf)(?![A-Za-z])")
_NAMES = {"sqrt": r"\sqrt", "pi": r"\pi ", "infinity": r"\infty ", "inf": r"\infty "}
_BARE_ROOT = re.compile(r"\\sqrt\s*(?:(\d+|[A-Za-z]|\\pi)|(?=\())")
_BARE_FRACTION = re.compile(r"\\frac\s*(\{[^{}]*\}|\d|[A-Za-z])\s*(\{|\d|[A-Za-z])")
_FRAMES = (
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ("**", "**"),
    ("__", "__"),
    ("*", "*"),
    ("_", "_"),
    ("`", "`"),
    ('"', '"'),
)


def spelled(text: str) -> str:
    """The answer in one spelling: ASCII where that has the sign, LaTeX where not, no frames.

    Takes time that grows with the square of the length: meant for answers, not for responses.
    """
    text = text.translate(CHARACTERS)
    text = _RAISED.sub(lambda raised: "^{" + raised.group().translate(_LOWERED) + "}", text)
    text = unframed(text.translate(_SYMBOLS))
    text = _COMMAND.sub(lambda name: _RENAMED.get(name[1], name[0]), text)
    for pattern, instead in _REWRITTEN:
        text = pattern.sub(partial(_rewritten, instead), text)
    text = _TEXT.sub(_opened, text)
    text = _PLAIN_NAMES.sub(lambda name: _NAMES[name[1]], text)
    text = _BARE_ROOT.sub(lambda root: rf"\sqrt{{{root[1]}}}" if root[1] else r"\sqrt", text)
    text = _braced_roots(text)
    text = _BARE_FRACTION.sub(_braced_fraction, text)
    text = re.sub(r"\\emptyset|^\\\{\s*\\\}$", lambda _: r"\emptyset", text)
    return unframed(" ".join(text.split()))


def _rewritten(instead: str, sign: re.Match[str]) -> str:
    return sign[0] if sign[0] == r"\\" else sign.expand(instead)


def unframed(text: str) -> str:
    r"""The text without $, \(, ** and the like around it, and a full stop or comma behind it."""
    before = None
    while text != before:
        before = text = text.strip()
        if text.endswith((".", ",", ";", ":")) and not text.endswith((r"\,", r"\;", r"\:")):
            text = text[:-1]
        if text.endswith(r"\\"):
            text = text[:-2]
        for left, right in _FRAMES:
            inner = text[len(left) : -len(right)]
            if (
                text.startswith(left)
                and text.endswith(right)
                and inner.strip()
                and right not in inner.replace(r"\$", "")
                and not inner.endswith("\\")
            ):
                text = inner
    return text


def _opened(text: re.Match[str]) -> str:
    """The letter or the number within a text; words stay marked as such."""
    inner = text[1].strip()
    if inner in ("sin", "cos", "tan", "ln", "log", "exp"):
        return rf"\{inner} "
    if any(character.isdigit() for character in inner):
        return text[1]
    return inner if len(inner) == 1 and inner in "eidxyzn" else text.group()


def _braced_roots(text: str) -> str:
    r"""\sqrt(2) as \sqrt{(2)}, which parsers read to its end."""
    while (start := text.find(r"\sqrt(")) >= 0:
        opening = start + len(r"\sqrt")
        closing = next((end for end, depth in depths(text, opening) if depth == 0), len(text))
        text = f"{text[:opening]}{{{text[opening:closing]}}}{text[closing:]}"
    return text


def _braced_fraction(fraction: re.Match[str]) -> str:
    top, bottom = fraction.groups()
    top = top if top.startswith("{") else f"{{{top}}}"
    return rf"\frac{top}{bottom if bottom == '{' else f'{{{bottom}}}'}"


_BRACKETS = re.compile(r"\\begin|\\end|\\[{}]|[()\[\]{}]|\\\\|\\[A-Za-z]+")
_DEEPER = {
    r"\begin": 1,
    r"\{": 1,
    "{": 1,
    "(": 1,
    "[": 1,
    r"\end": -1,
    r"\}": -1,
    "}": -1,
    ")": -1,
    "]": -1,
}


def depths(text: str, start: int = 0) -> Iterator[tuple[int, int]]:
    """Behind each bracket from `start` on: where that is, and how many are open there."""
    depth = 0
    for bracket in _BRACKETS.finditer(text, start):
        if step := _DEEPER.get(bracket.group(), 0):
            depth += step
            yield bracket.end(), depth


def split(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """The parts between the separators that stand in no brackets, and these separators."""
    parts, separators, start, depth = [], [], 0, 0
    changes = iter([*depths(text), (len(text) + 1, 0)])
    change, next_depth = next(changes)
    for match in separator.finditer(text):
        while match.start() >= change:
            depth = next_depth
            change, next_depth = next(changes)
        if depth == 0:
            parts.append(text[start : match.start()].strip())
            separators.append(match.group())
            start = match.end()
    return [*parts, text[start:].strip()], separators
