"""Whether two forms mean the same, part by part."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Protocol

from megatron_bar.verifiers.mathematics.forms import (
    Equation,
    Form,
    Group,
    InBase,
    Interval,
    Matrix,
    Ratio,
    Relation,
    Value,
    Words,
)
from megatron_bar.verifiers.mathematics.numbers import Number, agree

_SPACE = re.compile(r"(?<!\d) | (?!\d)")  # but not between digits


class Algebra(Protocol):
    """The questions that reading alone doesn't decide; formulas are LaTeX."""

    def values(self, one: str, other: str, decimal: Number | None) -> bool:
        """Whether two formulas have the same value; `decimal` is the one that is a decimal."""

    def equations(self, one: tuple[str, str], other: tuple[str, str]) -> bool:
        """Whether two equations, given by their sides, have the same solutions."""

    def relations(self, one: str, other: str) -> bool:
        """Whether two inequalities, or whatever else relates formulas, say the same."""


def same(given: Form, expected: Form, algebra: Algebra) -> bool:
    """Whether two answers mean the same.

    Which of them is the reference makes a difference for equations alone: m + n = 5 gives 5, but
    where an equation is asked for, its right side isn't it.
    """
    if given == expected:
        return True
    if isinstance(given, Equation) and not isinstance(expected, Equation):
        return _is_true(given, algebra) and same(given.value, expected, algebra)
    if isinstance(expected, Equation) and not isinstance(given, Equation):
        return (expected.assigns or not _has_names(expected)) and same(
            given, expected.value, algebra
        )
    for a, b in ((given, expected), (expected, given)):
        if (verdict := _one_way(a, b, algebra)) is not None:
            return verdict
    return False


def _one_way(a: Form, b: Form, algebra: Algebra) -> bool | None:
    """The verdict, or None where the rule for these two forms is written the other way round."""
    match a, b:
        case Value(), Value():
            return _values(a, b, algebra)
        case Words(), Words():
            return _words(a.text, b.text, a.quoted or b.quoted)
        case Words(), Value():
            return _words(a.text, b.text, a.quoted)
        case Equation(), Equation():
            return _equations(a, b, algebra)
        case Relation(), Relation():
            return algebra.relations(a.text, b.text)
        case Interval(), Interval():
            return _intervals(a, b, algebra)
        case Interval(), Group(kind="(" | "[", items=[Value() as low, Value() as high]):
            closed = b.kind == "["
            return _intervals(a, Interval(None, low, high, (closed, closed)), algebra)
        case Group(), Group():
            return _groups(a, b, algebra)
        case Group(kind=",", decimal=Number() as decimal), Value(number=Number() as number):
            # 3,14 is a decimal where the other answer is one.
            return number.value.denominator != 1 and agree(decimal, number)
        case Group(kind="{", items=[single]), _:
            return same(single, b, algebra)
        case Matrix(), Matrix():
            return [len(row) for row in a.rows] == [len(row) for row in b.rows] and all(
                same(x, y, algebra)
                for left, right in zip(a.rows, b.rows)
                for x, y in zip(left, right)
            )
        case Ratio(), Ratio():
            return _ratios(a.parts, b.parts, algebra)
        case InBase(), InBase():
            return a == b
    return None


def _values(a: Value, b: Value, algebra: Algebra) -> bool:
    if a.unit and b.unit:
        if a.unit.dimensions != b.unit.dimensions:
            return False
        return _values(_times(a, a.unit.factor / b.unit.factor), replace(b, unit=None), algebra)
    if a.percent != b.percent:
        percent, plain = (a, b) if a.percent else (b, a)
        bare = replace(percent, percent=False)
        # 25 % stands for a quarter, and for 25 where percent was asked for.
        return _values(bare, plain, algebra) or _values(
            _times(bare, Fraction(1, 100)), plain, algebra
        )
    if a.number and b.number:
        return agree(a.number, b.number)
    if _SPACE.sub("", a.text) == _SPACE.sub("", b.text):
        return True
    if r"\infty" in (a.text[-6:], b.text[-6:]):
        return a.text.lstrip("+ ") == b.text.lstrip("+ ")
    if a.text.isalpha() and b.text.isalpha() and _words(a.text, b.text, False):
        return True
    number = a.number or b.number
    return algebra.values(a.text, b.text, number if number and number.places else None)


def _times(value: Value, factor: Fraction) -> Value:
    """The value in another unit, without a unit."""
    if factor == 1:
        return replace(value, unit=None)
    if value.number is None:
        return Value(rf"\frac{{{factor.numerator}}}{{{factor.denominator}}}({value.text})")
    number = Number(value.number.value * factor, value.number.places)
    return Value(rf"\frac{{{number.value.numerator}}}{{{number.value.denominator}}}", number)


def _words(one: str, other: str, quoted: bool) -> bool:
    """Words are the same in capitals; letters may be names, which aren't."""
    if one == other:
        return True
    if one.lower() != other.lower():
        return False
    names = len(one) <= 3 and one.lower() not in ("yes", "no")
    if names and not quoted:
        return one[1:] == other[1:] and len(one) == 3  # Red and red, but not AB and ab
    return len(one) > 1


def _equations(a: Equation, b: Equation, algebra: Algebra) -> bool:
    if a.sides[0] == b.sides[0]:
        return same(a.value, b.value, algebra)
    return algebra.equations(a.sides, b.sides)


def _is_true(equation: Equation, algebra: Algebra) -> bool:
    """Whether an equation may hold: x = 5 and 3 + 2 = 5 may, 6 = 5 doesn't."""
    return equation.assigns or _has_names(equation) or algebra.values(*equation.sides, None)


def _has_names(equation: Equation) -> bool:
    return any(letter.isalpha() for letter in equation.sides[0])


def _intervals(a: Interval, b: Interval, algebra: Algebra) -> bool:
    return (
        (a.name == b.name or None in (a.name, b.name))
        and a.closed == b.closed
        and same(a.low, b.low, algebra)
        and same(a.high, b.high, algebra)
    )


def _groups(a: Group, b: Group, algebra: Algebra) -> bool:
    kinds = {a.kind, b.kind}
    equal = _matcher(algebra)
    if a.kind == b.kind == "{":
        return all(any(equal(x, y) for y in b.items) for x in a.items) and all(
            any(equal(x, y) for x in a.items) for y in b.items
        )
    if len(a.items) != len(b.items):
        return False
    if kinds <= {",", "u", "{"}:
        told = Value(r"\ldots") in a.items  # what is left out makes sense in this order only
        return _in_order(a.items, b.items, equal) or (
            not told and _in_any_order(a.items, b.items, equal)
        )
    if kinds <= {"(", "["} and len(kinds) == 2 and len(a.items) == 2:
        return False  # an open and a closed interval
    return kinds <= {",", "(", "["} and _in_order(a.items, b.items, equal)


def _matcher(algebra: Algebra) -> Callable[[Form, Form], bool]:
    """`same`, asked once for each pair."""
    known: dict[tuple[Form, Form], bool] = {}

    def equal(x: Form, y: Form) -> bool:
        if (x, y) not in known:
            known[x, y] = same(x, y, algebra)
        return known[x, y]

    return equal


def _in_order(a: Sequence[Form], b: Sequence[Form], equal: Callable[[Form, Form], bool]) -> bool:
    return all(equal(x, y) for x, y in zip(a, b))


def _in_any_order(
    a: Sequence[Form], b: Sequence[Form], equal: Callable[[Form, Form], bool]
) -> bool:
    """Each of one list equal to another one of the other; equal is taken to be transitive."""
    left = list(b)
    for x in a:
        found = next((index for index, y in enumerate(left) if equal(x, y)), None)
        if found is None:
            return False
        del left[found]
    return True


def _ratios(a: Sequence[Form], b: Sequence[Form], algebra: Algebra) -> bool:
    """2:3 and 4:6 are the same."""
    left = [part for part in a if isinstance(part, Value)]
    right = [part for part in b if isinstance(part, Value)]
    if not len(a) == len(b) == len(left) == len(right):
        return False
    x_numbers = [part.number.value for part in left if part.number]
    y_numbers = [part.number.value for part in right if part.number]
    if len(x_numbers) == len(y_numbers) == len(a):
        return all(x * y_numbers[0] == y * x_numbers[0] for x, y in zip(x_numbers, y_numbers))
    return all(
        algebra.values(
            rf"\frac{{{x.text}}}{{{left[0].text}}}", rf"\frac{{{y.text}}}{{{right[0].text}}}", None
        )
        for x, y in zip(left, right)
    )
