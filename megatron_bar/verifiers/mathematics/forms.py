"""The form of an answer: a value, words, a list, a set, an interval, an equation, a matrix."""

from __future__ import annotations

import re
from dataclasses import dataclass

from megatron_bar.verifiers.mathematics.numbers import Number, decimal_comma, in_base, number
from megatron_bar.verifiers.mathematics.spelling import depths, spelled, split, unframed
from megatron_bar.verifiers.mathematics.units import Unit, is_unit_name, unit

_DEEPEST = 8  # lists in lists; what is deeper is left to algebra as it stands

_SEPARATOR = re.compile(  # but not the comma of 1,234
    r";|,(?!(?<=\d,)\d{3}(?!\d))|\\text\{,?\s*(?:and|or)\s*\}|(?<![A-Za-z])(?:and|or)(?![A-Za-z])|"
    r"\\(?:vee|lor)(?![A-Za-z])"
)
_JOINED_TEXT = re.compile(r"\\text\{([^{}]*\w) (and|or) (\w[^{}]*)\}")
_COMMA = re.compile("[,;]")
_UNION = re.compile(r"\\cup(?![A-Za-z])")
_RELATION = re.compile(r"\\(?:le|ge|ne|in|approx)(?![A-Za-z])|[<>]|(?<![:!])=")
_RATIO = re.compile(r":|\\text\{\s*to\s*\}|(?<=\d) to (?=\d)")
_MATRIX = re.compile(
    r"(?P<factor>.*?)\\begin\{(?P<kind>[pbB]?matrix|array|smallmatrix)\}"
    r"(?:\{[lcr| ]*\})?(?P<body>.*)\\end\{(?P=kind)\}"
)
_ROW_END = re.compile(r"\\\\(?:\[[^\]]*\])?|\\hline")
_SET_OF = re.compile(r"\s*[A-Za-z]\s*(?:\\mid|\||:)\s*(.+)")
_NAME = re.compile(
    r"\\?[A-Za-z]+(?:_(?:\w|\{[^{}]*\}))?'*(?:\([^()]*\))?|\\(?:text|angle|overline)"
    r"\s*(?:\{[^{}]*\}|[A-Za-z ]+)|[A-Za-z ]+"
)
_PERCENT = re.compile(r"(.*\S)\s*(?:%|\\text\{\s*per ?cent\s*\}|per ?cent)", re.IGNORECASE)
_DEGREES = re.compile(r"(.*\S)\s*\^\s*\{?\s*\\circ\s*\}?\s*(?:\\text\{\s*([CF])\s*\}|([CF]))?")
_TEXT_BEHIND = re.compile(r"(.*[^\s(=+\-*/^_])\s*\\text\{([^{}]*)\}\s*(?:\^\s*\{?\s*(\d)\s*\}?)?")
_WORDS_BEHIND = re.compile(
    r"(?P<value>[-+]?[$€£]?\s*(?:\d(?:[\d,.' ]*\d)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?"
    r"(?:\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{[-+]?\d+\}|[-+]?\d+))?|"
    r"\d*\s*\\frac\{-?\d+\}\{\d+\}))(?P<space>\s*)(?P<words>[€$£¥A-Za-z].*)",
    re.ASCII,
)
_NO_UNITS = re.compile(r"\\|(?<![A-Za-z])(?:sin|cos|tan|log|ln|exp|mod|choose)(?![A-Za-z])")
_QUOTED = re.compile(r"(?:[A-Za-z' .,!?-]|\\text\{[^{}\\]*\})+")


@dataclass(frozen=True)
class Value:
    """A number or a formula, `text` as LaTeX."""

    text: str
    number: Number | None = None
    unit: Unit | None = None
    percent: bool = False


@dataclass(frozen=True)
class Words:
    text: str
    quoted: bool  # whether LaTeX marks them as text


@dataclass(frozen=True)
class Group:
    """Several answers: `,` is a bare list; `(` and `[` tell order, `{` is a set, `u` a union."""

    kind: str
    items: tuple[Form, ...]
    decimal: Number | None = None  # what it is if its comma is a decimal point


@dataclass(frozen=True)
class Interval:
    """All numbers between two ends; without a name where none was given."""

    name: str | None
    low: Value
    high: Value
    closed: tuple[bool, bool]


@dataclass(frozen=True)
class Equation:
    sides: tuple[str, str]
    value: Form  # of the side that isn't the name of something
    assigns: bool  # whether one side is a name alone


@dataclass(frozen=True)
class Relation:
    """Inequalities that no interval says, and the like."""

    text: str


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[Form, ...], ...]


@dataclass(frozen=True)
class Ratio:
    parts: tuple[Form, ...]


@dataclass(frozen=True)
class InBase:
    digits: str
    base: int


Form = Value | Words | Group | Interval | Equation | Relation | Matrix | Ratio | InBase

_INFINITE = Value(r"\infty")
_MINUS_INFINITE = Value(r"-\infty")
_ALL_NUMBERS = (r"\mathbb{R}", r"\mathbb R", r"\text{all real numbers}", "all real numbers")


def read(text: str) -> Form:
    """The form of an answer, as it stands in a box or a reference."""
    return _read(spelled(text), 0)


def _read(text: str, depth: int) -> Form:
    text = unframed(text)
    if depth > _DEEPEST:
        return Value(text)
    if text in _ALL_NUMBERS:
        return Interval(None, _MINUS_INFINITE, _INFINITE, (False, False))
    if (found := number(text)) is not None:
        return _with_currency(text, found)
    if (based := in_base(text)) is not None:
        return InBase(*based) if based[1] != 10 else _read(based[0], depth + 1)
    for reader in (_matrix, _union, _list, _relation, _bracketed, _plus_minus, _ratio):
        if (form := reader(text, depth + 1)) is not None:
            return form
    return _quantity(text)


def _with_currency(text: str, found: Number) -> Value:
    sign = re.search("[$€£¥₹]", text)
    return Value(_latex(found), found, unit(sign.group()) if sign else None)


def _latex(found: Number) -> str:
    top, bottom = found.value.numerator, found.value.denominator
    return str(top) if bottom == 1 else rf"\frac{{{top}}}{{{bottom}}}"


def _matrix(text: str, depth: int) -> Form | None:
    match = _MATRIX.fullmatch(text)
    if match is None or r"\begin" in match["body"]:
        return None
    factor = match["factor"].strip().removesuffix(r"\cdot").strip()
    factor = {"-": "-1", "+": ""}.get(factor, factor)
    rows = [row for row in _ROW_END.split(match["body"]) if row.strip()]

    def entry(cell: str) -> Form:
        if not factor:
            return _read(cell, depth)
        return Value(rf"({factor})\cdot({unframed(cell)})")

    return Matrix(tuple(tuple(entry(cell) for cell in row.split("&")) for row in rows))


def _union(text: str, depth: int) -> Form | None:
    parts, _ = split(text, _UNION)
    return Group("u", tuple(_read(part, depth) for part in parts)) if len(parts) > 1 else None


def _list(text: str, depth: int) -> Form | None:
    """A bare list; inequalities that "or" joins are a union."""
    parts, separators = split(_JOINED_TEXT.sub(r"\\text{\1} \2 \\text{\3}", text), _SEPARATOR)
    parts = [part for part in parts if part]
    if not separators or len(parts) < 2:
        return None
    items = [_read(part, depth) for part in parts]
    if all(isinstance(item, Interval) for item in items) and all(
        "or" in word or "ee" in word for word in separators
    ):
        return Group("u", tuple(items))
    return Group(",", _flat(items), decimal_comma(text))


def _flat(items: list[Form]) -> tuple[Form, ...]:
    r"""Without lists in the list, as 0, \pm 1 has one."""
    return tuple(
        inner
        for item in items
        for inner in (item.items if isinstance(item, Group) and item.kind == "," else (item,))
    )


def _relation(text: str, depth: int) -> Form | None:
    sides, signs = split(text, _RELATION)
    if not signs:
        return None
    kinds = {sign.strip() for sign in signs}
    if kinds == {"="}:
        return _equation(sides, depth)
    if kinds == {r"\in"} and len(sides) == 2:
        return _read(sides[1], depth)
    if kinds == {r"\approx"}:
        return _read(sides[-1], depth)
    if kinds <= {"<", r"\le"} or kinds <= {">", r"\ge"}:
        if kinds <= {">", r"\ge"}:
            sides, signs = sides[::-1], signs[::-1]
        closed = [sign == r"\le" or sign == r"\ge" for sign in signs]
        match sides:
            case [low, name, high] if _NAME.fullmatch(name):
                interval = _interval(name, low, high, (closed[0], closed[1]), depth)
            case [low, high] if not low or _NAME.fullmatch(low):
                interval = _interval(low or None, None, high, (False, closed[0]), depth)
            case [low, high] if not high or _NAME.fullmatch(high):
                interval = _interval(high or None, low, None, (closed[0], False), depth)
            case _:
                interval = None
        if interval:
            return interval
    return Relation(text)


def _interval(
    name: str | None, low: str | None, high: str | None, closed: tuple[bool, bool], depth: int
) -> Interval | None:
    first = _MINUS_INFINITE if low is None else _read(low, depth)
    last = _INFINITE if high is None else _read(high, depth)
    if not (isinstance(first, Value) and isinstance(last, Value)):
        return None
    return Interval(name, first, last, closed)


def _equation(sides: list[str], depth: int) -> Form:
    first, last = sides[0], sides[-1]
    if _is_name(last) and not _is_name(first):
        first, last = last, first
    named = _is_name(first)
    return Equation((first, last), _read(last, depth), named)


def _is_name(side: str) -> bool:
    return _NAME.fullmatch(side) is not None and side not in ("e", "i", r"\pi", r"\infty")


def _bracketed(text: str, depth: int) -> Form | None:
    """A tuple, an interval, a set; or what single brackets stand around."""
    for left, right in (
        ("(", ")"),
        ("[", "]"),
        (r"\{", r"\}"),
        (r"\langle", r"\rangle"),
        ("(", "]"),
        ("[", ")"),
        ("{", "}"),
    ):
        if text.startswith(left) and text.endswith(right) and _encloses(text, left):
            break
    else:
        return None
    inner = text[len(left) : -len(right)].strip()
    if left == r"\{" and (match := _SET_OF.fullmatch(inner)):
        return _read(match[1], depth)
    parts, separators = split(inner, _SEPARATOR)
    if not separators and "," in inner:
        parts, separators = split(inner, _COMMA)
    if len(parts) == 1:
        if left in (r"\{", r"\langle") or left + right in ("[]", "(]", "[)"):
            return Group("{" if left == r"\{" else "[", (_read(inner, depth),)) if inner else None
        return _read(inner, depth) if not re.fullmatch("[A-Za-z]", inner) else Words(inner, True)
    items = tuple(_read(part, depth) for part in parts)
    if left + right in ("(]", "[)"):
        match items:
            case [Value() as low, Value() as high]:
                return Interval(None, low, high, (left == "[", right == "]"))
        return None
    kind = {r"\{": "{", "{": "{", r"\langle": "("}.get(left, left)
    return Group(kind, _flat(list(items)) if kind == "{" else items)


def _encloses(text: str, left: str) -> bool:
    """Whether the first bracket is closed by the last."""
    if left == r"\langle":
        return text.count(left) == 1
    return next((end for end, depth in depths(text) if depth == 0), 0) == len(text)


def _plus_minus(text: str, depth: int) -> Form | None:
    if r"\pm" not in text or r"\mp" in text:
        return None
    plus = re.sub(r"^\s*\\pm(?![A-Za-z])", "", text)
    return Group(
        ",",
        tuple(
            _read(re.sub(r"\\pm(?![A-Za-z])", sign, side), depth)
            for sign, side in (("+", plus), ("-", text))
        ),
    )


def _ratio(text: str, depth: int) -> Form | None:
    parts, separators = split(text, _RATIO)
    if not separators or not all(parts):
        return None
    return Ratio(tuple(_read(part, depth) for part in parts))


def _quantity(text: str) -> Form:
    """A value, perhaps with a unit or percent behind it, or words."""
    if match := _PERCENT.fullmatch(text):
        return Value(*_value(match[1]), percent=True)
    if match := _DEGREES.fullmatch(text):
        scale = {"C": "celsius", "F": "fahrenheit"}.get(match[2] or match[3], "degree")
        return Value(*_value(match[1]), unit(scale))
    if match := _TEXT_BEHIND.fullmatch(text):
        power = f"^{match[3]}" if match[3] else ""
        return Value(*_value(match[1]), unit(match[2].strip() + power))
    if (match := _WORDS_BEHIND.fullmatch(text)) and _are_units(match["words"], match["space"]):
        sign = re.search("[$€£]", match["value"])
        return Value(*_value(match["value"]), unit(sign.group() if sign else match["words"]))
    if words := _words(text):
        return words
    return Value(*_value(text))


def _value(text: str) -> tuple[str, Number | None]:
    text = unframed(text)
    found = number(text)
    return (text if found is None else _latex(found)), found


def _are_units(words: str, space: str) -> bool:
    r"""Whether what stands behind a number are words, and not the factors of a product."""
    bare = re.sub(r"\\(?:text|cdot)(?![A-Za-z])", "", words)
    if _NO_UNITS.search(bare) or "=" in bare:
        return False
    first = re.match(r"[€$£¥]|[A-Za-z]+", bare)
    if first is None:
        return False
    word = first.group()
    return (
        (is_unit_name(word) and (bool(space) or len(word) > 1))
        or (bool(space) and len(word) > 2)
        or (unit(bare) is not None and bool(space))
    )


def _words(text: str) -> Words | None:
    if not _QUOTED.fullmatch(text):
        return None
    quoted = r"\text" in text
    plain = " ".join(re.sub(r"\\text|[{}()]", " ", text).split()).strip(" .,!?'")
    if plain and (
        quoted or re.search("[A-Za-z]{4}", plain) or " " in plain or plain.lower() in ("yes", "no")
    ):
        return Words(plain, quoted)
    return None
