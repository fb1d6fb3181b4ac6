"""Units: names that mean the same, and how many of a basic unit each is."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

# dimension: {name: how many of the first}
_TABLE: dict[str, dict[str, Fraction | int | str]] = {
    "length": {
        "m meter metre": 1,
        "mm millimeter millimetre": "1/1000",
        "cm centimeter centimetre": "1/100",
        "dm decimeter": "1/10",
        "km kilometer kilometre": 1000,
        "in inch inches": "0.0254",
        "ft foot feet": "0.3048",
        "yd yard": "0.9144",
        "mi mile": "1609.344",
    },
    "time": {
        "s sec second": 1,
        "min minute": 60,
        "h hr hour": 3600,
        "day": 86400,
        "week": 604800,
        "month": 2629746,
        "yr year": 31556952,
    },
    "mass": {
        "g gram": "1/1000",
        "mg milligram": "1/1000000",
        "kg kilogram": 1,
        "lb pound": "0.45359237",
        "oz ounce": "0.028349523125",
        "ton tonne": 1000,
    },
    "volume": {
        "l liter litre": 1,
        "ml milliliter millilitre": "1/1000",
        "gallon": "3.785411784",
        "quart": "0.946352946",
        "cup": "0.2365882365",
    },
    "dollars": {"$ usd dollar": 1, "cent cents": "1/100"},
    "euros": {"€ eur euro": 1},
    "pounds sterling": {"£ gbp": 1},
    "yen": {"¥ jpy yen": 1},
    "rupees": {"₹ inr rupee": 1},
    "angle": {"degree deg": 1, "rad radian": "57.29577951308232"},
    "temperature": {"celsius": 1},
    "temperature in fahrenheit": {"fahrenheit": 1},
    "frequency": {"hz hertz": 1},
    "force": {"n newton": 1},
    "energy": {"j joule": 1},
    "power": {"w watt": 1},
    "voltage": {"v volt": 1},
    "current": {"a ampere amp": 1},
}
_KNOWN = {
    name: (dimension, Fraction(count))
    for dimension, units in _TABLE.items()
    for names, count in units.items()
    for name in names.split()
}
_SINGLE = frozenset("msghlLJNWVA$€£¥₹")  # what one letter may stand for behind a number
_WORDED = {
    "mph": "miles/hour",
    "kph": "km/h",
    "kmh": "km/h",
    "sq": "square",
    "°c": "celsius",
    "°f": "fahrenheit",
}
_FACTOR = re.compile(r"([^\W\d_]+|[$€£¥₹])\.?(?:\^?\{?(-?\d)\}?)?")


@dataclass(frozen=True)
class Unit:
    """A unit as a product of dimensions with powers, and how many basic ones it is."""

    dimensions: frozenset[tuple[str, int]]
    factor: Fraction


def is_unit_name(word: str) -> bool:
    """Whether a word, or a letter behind a number, is the name of a unit."""
    return word in _SINGLE if len(word) == 1 else _singular(word.lower()) in _KNOWN | _WORDED


def unit(text: str) -> Unit | None:
    """The unit that `cm^2`, `square feet`, `miles per hour` or `m/s` is; None if unknown."""
    text = re.sub(r"\\text|[{}]|\\cdot|\*", " ", text.strip())
    for short, long in _WORDED.items():
        text = re.sub(rf"(?<![A-Za-z°]){short}(?![A-Za-z])", long, text, flags=re.IGNORECASE)
    powers: Counter[str] = Counter()
    factor = Fraction(1)
    for number, part in enumerate(re.split(r"/|\bper\b", text)):
        side = -1 if number else 1
        wanted = 1  # the power that "square" announces
        for word in part.split():
            lower = word.lower()
            if lower in ("square", "cubic"):
                wanted = 2 if lower == "square" else 3
                continue
            if lower in ("squared", "cubed") and powers:
                return _raised(text, lower)
            match = _FACTOR.fullmatch(word)
            if match is None or (name := _singular(match[1].lower())) not in _KNOWN:
                return None
            dimension, count = _KNOWN[name]
            power = side * wanted * int(match[2] or 1)
            powers[dimension] += power
            factor *= count**power
            wanted = 1
    known = frozenset((dimension, power) for dimension, power in powers.items() if power)
    return Unit(known, factor) if known else None


def _raised(text: str, word: str) -> Unit | None:
    """`cm squared` as `square cm`."""
    first, _, rest = text.lower().partition(word)
    return None if rest.strip() else unit(f"{'square' if word == 'squared' else 'cubic'} {first}")


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and word[:-1] in _KNOWN else word
