"""Numbers as they are written: separators, exponents, fractions, mixed numbers, other bases."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_LARGEST_EXPONENT = 400  # of ten; larger numbers are formulas
_ENOUGH_PLACES = 6  # decimals from which on a rounded number stands for the exact one
_ENOUGH_DIGITS = 1000  # the digits of such a number are at least this, which makes four of them

_DECIMAL = (
    r"(?:0|[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+|[1-9]\d{0,2}(?:'\d{3})+|\d+)"
    r"(?:\.\d*)?|\.\d+"
)
# Unlike the above, sure to have its decimals behind a comma.
_COMMA = (
    r"[1-9]\d{0,2}(?:\.\d{3})+,\d+|[1-9]\d{0,2}(?:\.\d{3}){2,}|0+,\d+|"
    r"[1-9]\d{0,2}(?:[ ']\d{3})+,\d+"
)
_EXPONENT = (
    r"[eE](?P<e>[-+]?\d+)|"
    r"\s*(?:\\times|\\cdot|\*|[xX])\s*10\s*\^\s*\{?\s*(?P<ten>[-+]?\d+)\}?"
)
_SCALED = re.compile(
    rf"(?P<comma>{_COMMA})(?P<after>)|(?P<decimal>{_DECIMAL})(?:{_EXPONENT})?", re.ASCII
)
_POWER = re.compile(r"10\s*\^\s*(?:\{\s*([-+]?\d+)\s*\}|([-+]?\d))", re.ASCII)
_FRACTION = re.compile(
    r"(?:(?P<whole>\d+)(?:\s+|\s*(?=\\)|\s*-\s*(?=\d+/)))?"
    r"(?:(?P<top>\d+)\s*/\s*(?P<bottom>\d+)|\\frac\{(?P<over>\s*-?\d+\s*)\}\{(?P<under>\s*\d+\s*)\})",
    re.ASCII,
)
_COUNTED = re.compile(r"(.*[^\s{])\s*(?:\\text\{)?\s*(thousand|million|billion|trillion)\s*\}?")
_COUNTS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SIGN = re.compile(r"\s*([-+]?)\s*(?:[$€£¥₹]\s*)?([-+]?)")
_DECIMAL_COMMA = re.compile(r"([-+]?\d+),(\d+)", re.ASCII)
_BASE = re.compile(
    r"([0-9A-Fa-f]+(?:\.[0-9A-Fa-f]+)?)\s*(?:"
    r"_\s*\{?\s*(?:\\text)?[{(]?\s*(?:base)?\s*(\w+)\s*[)}]*|"
    r"\\text\{\s*\(?base\s*(\w+)\)?\s*\}|\s*\(?base\s+(\w+)\)?)"
)
_BASES = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "eleven": 11,
    "twelve": 12,
    "sixteen": 16,
}


@dataclass(frozen=True)
class Number:
    """An exact value, and how many decimals it was written with."""

    value: Fraction
    places: int = 0


def number(text: str) -> Number | None:
    """The number that a spelled text is; None if it's none, or more than that."""
    sign = _SIGN.match(text)
    assert sign is not None  # no sign matches, too
    rest = text[sign.end() :].strip()
    if sign[1] and sign[2]:
        return None
    found = _unsigned(rest)
    if found is None or "-" not in sign.groups():
        return found
    return Number(-found.value, found.places)


def _unsigned(text: str) -> Number | None:
    if match := _COUNTED.fullmatch(text):
        found = _unsigned(match[1])
        return found and _scaled(found.value, found.places, _COUNTS[match[2]])
    if match := _POWER.fullmatch(text):
        return _scaled(Fraction(1), 0, int(match[1] or match[2]))
    if match := _SCALED.fullmatch(text):
        if match["comma"]:
            whole, _, decimals = match["comma"].partition(",")
            digits = re.sub(r"[. ']", "", whole)
        else:
            whole, _, decimals = match["decimal"].partition(".")
            digits = re.sub("[, ']", "", whole)
        value = Fraction(f"{digits or 0}.{decimals or 0}")
        return _scaled(value, len(decimals), int(match["e"] or match["ten"] or 0))
    if match := _FRACTION.fullmatch(text):
        bottom = int(match["bottom"] or match["under"])
        if bottom == 0:
            return None
        fraction = Fraction(int(match["top"] or match["over"]), bottom)
        if match["whole"] and not 0 <= fraction < 1:
            return None
        return Number(int(match["whole"] or 0) + fraction)
    return None


def _scaled(value: Fraction, places: int, exponent: int) -> Number | None:
    if abs(exponent) > _LARGEST_EXPONENT:
        return None
    return Number(value * Fraction(10) ** exponent, max(0, places - exponent) if places else 0)


def decimal_comma(text: str) -> Number | None:
    """`3,14` as a number, which may be a list of two as well."""
    match = _DECIMAL_COMMA.fullmatch(text.replace(" ", "") if ", " not in text else "")
    return Number(Fraction(f"{match[1]}.{match[2]}"), len(match[2])) if match else None


def in_base(text: str) -> tuple[str, int] | None:
    """The digits of `21_7` and the base, if it isn't ten."""
    match = _BASE.fullmatch(text.removeprefix("(").replace(")_", "_"))
    if match is None:
        return None
    name = (match[2] or match[3] or match[4]).lower()
    base = _BASES.get(name) or (int(name) if name.isdecimal() and len(name) < 3 else 0)
    digits = match[1].upper().lstrip("0") or "0"
    known = all(int(digit, 16) < base for digit in digits if digit != ".")
    is_name = digits.isalpha() and base != 16  # a_{12}
    return (digits, base) if base and known and not is_name else None


def agree(one: Number, other: Number) -> bool:
    """Whether two numbers are equal, or one is the other, rounded or cut to many decimals."""
    if one.value == other.value:
        return True
    places = min((p for p in (one.places, other.places) if p), default=0)
    rounded = one if one.places == places else other
    return is_rounded(rounded, abs(one.value - other.value))


def is_rounded(number: Number, difference: Fraction | float) -> bool:
    """Whether a number that lies so far from another one may be that one, rounded or cut."""
    unit = Fraction(10) ** -number.places
    return (
        number.places >= _ENOUGH_PLACES
        and abs(number.value) >= _ENOUGH_DIGITS * unit
        and difference < unit
    )
