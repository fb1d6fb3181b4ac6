"""Formulas compared by sympy, after math-verify's parser has read them.

Two formulas are the same if they have the same values at some points; two numbers, if they differ
by less than rounding *relative to their size*, so that 10^{-8} isn't 0. Only what has no values,
as functions without a definition, is left to math-verify's own comparison, which simplifies.
"""

from __future__ import annotations

import itertools
import re
from fractions import Fraction

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify
from math_verify.grader import should_treat_as_complex

from megatron_bar.verifiers.mathematics.numbers import Number, is_rounded

_DIGITS = 30  # of a value
_NEAR = sympy.Float(10) ** -20  # relative difference of what is the same
_NEAR_WITH_DECIMALS = sympy.Float(10) ** -12  # 0.1 is read as a binary number
_SPELLING = NormalizationConfig(
    basic_latex=True,
    units=False,
    malformed_operators=True,
    nits=True,
    boxed="none",
    equations=False,
)
# What symbols stand for in turn. Some are natural numbers, as n in (-1)^n.
_POINTS = (
    "17/13 5/7 29/11 3/19 41/23 2/3",
    "-7/5 -19/8 -3/17 -13/29 -31/12 -1/9",
    "1/3 23/7 9/14 37/10 5/21 11/4",
    "2 3 5 7 11 4",
    "5 8 3 2 6 9",
    "-5/3 7/9 -11/6 15/4 -2/7 8/3",
)
_FEWEST = 2  # points at which formulas have to agree

_IMAGINARY = re.compile(r"\di(?![A-Za-z])")  # 4i


class SympyAlgebra:
    """See Algebra. Takes as long as sympy does, and may grow without end."""

    def values(self, one: str, other: str, decimal: Number | None) -> bool:
        """Whether two formulas have the same value; False if one can't be read."""
        a, b = _parsed(one, other)
        if a is None or b is None:
            return False
        if decimal is not None:
            exact = _value(b if a == _fraction(decimal.value) else a, {})
            if exact is None or not exact.is_real:
                return False
            return is_rounded(decimal, abs(Fraction(str(exact)) - decimal.value)) or _near(
                exact, _fraction(decimal.value), _tolerance(a, b)
            )
        return _same(a, b)

    def equations(self, one: tuple[str, str], other: tuple[str, str]) -> bool:
        """Whether two equations are multiples of each other."""
        sides = [side for side in _parsed(*one, *other) if side is not None]
        if len(sides) < 4:
            return False
        a, b = sides[0] - sides[1], sides[2] - sides[3]
        symbols = a.free_symbols | b.free_symbols
        if a.free_symbols != b.free_symbols or not symbols:
            return False
        ratios = []
        for point in _points(symbols):
            x, y = _value(a, point), _value(b, point)
            if x is None or y is None or y == 0:
                continue
            ratios.append(x / y)
        if len(ratios) >= _FEWEST:
            near = _tolerance(a, b)
            return all(ratio != 0 and _near(ratio, ratios[0], near) for ratio in ratios)
        return False

    def relations(self, one: str, other: str) -> bool:
        """Whether two relations say the same, in the opinion of math-verify."""
        a, b = _parsed(one, other, framed=False)
        return a is not None and b is not None and bool(verify(b, a, timeout_seconds=None))


def _parsed(*formulas: str, framed: bool = True) -> list[sympy.Basic | None]:
    """The formulas, None for one that can't be read to its end.

    Brackets around them make sure of the end: the parser stops at what it doesn't know. If one of
    them is complex, an i in all is the imaginary unit.
    """
    texts = [normalize_latex(latex, _SPELLING) for latex in formulas]
    real = not any(should_treat_as_complex(text) or _IMAGINARY.search(text) for text in texts)
    return [_formula(f"({text})" if framed else text, real) for text in texts]


def _formula(latex: str, real: bool) -> sympy.Basic | None:
    try:
        formula = latex2sympy(
            latex,
            is_real=real,
            convert_degrees=False,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    except Exception:  # the parser and what it builds raise anything
        return None
    if not isinstance(formula, sympy.Basic):
        return None
    if real:
        return formula
    return formula.subs({symbol: sympy.I for symbol in formula.free_symbols if symbol.name == "i"})


def _same(a: sympy.Basic, b: sympy.Basic) -> bool:
    if a == b:
        return True
    symbols, near = a.free_symbols | b.free_symbols, _tolerance(a, b)
    if not symbols:
        x, y = _value(a, {}), _value(b, {})
        return _near(x, y, near) if x is not None and y is not None else _by_math_verify(a, b)
    real: list[bool] = []
    complexes: list[bool] = []
    for point in _points(symbols):
        x, y = _value(a, point), _value(b, point)
        if x is None or y is None:
            continue
        # Where one of them isn't real, it may be the other branch of a root.
        (real if x.is_real and y.is_real else complexes).append(_near(x, y, near))
    verdicts = real if len(real) >= _FEWEST else complexes
    return all(verdicts) if len(verdicts) >= _FEWEST else _by_math_verify(a, b)


def _by_math_verify(a: sympy.Basic, b: sympy.Basic) -> bool:
    return a.free_symbols == b.free_symbols and bool(verify(b, a, timeout_seconds=None))


def _points(symbols: set[sympy.Symbol]) -> list[dict[sympy.Symbol, sympy.Rational]]:
    ordered = sorted(symbols, key=str)
    return [
        dict(zip(ordered, itertools.cycle(map(sympy.Rational, point.split())))) for point in _POINTS
    ]


def _value(formula: sympy.Basic, point: dict[sympy.Symbol, sympy.Rational]) -> sympy.Expr | None:
    """The number that a formula is at a point; None if it's none there."""
    try:
        value = formula.subs(point).doit().evalf(_DIGITS)
    except Exception:  # sympy's functions raise anything at odd places
        return None
    if (
        not isinstance(value, sympy.Expr)
        or not value.is_number
        or value.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo)
    ):
        return None
    real, imaginary = map(_without_noise, value.as_real_imag())
    return real if abs(imaginary) <= _NEAR * abs(real) else real + sympy.I * imaginary


def _without_noise(number: sympy.Expr) -> sympy.Expr:
    """0 for what is left of a sum that should be 0: sympy says that no digit of it is known."""
    known = getattr(number, "_prec", _DIGITS) > 1
    return number if known else sympy.Integer(0)


def _tolerance(*formulas: sympy.Basic) -> sympy.Float:
    return _NEAR_WITH_DECIMALS if any(formula.has(sympy.Float) for formula in formulas) else _NEAR


def _near(x: sympy.Expr, y: sympy.Expr, tolerance: sympy.Float) -> bool:
    return bool(abs(x - y) <= tolerance * max(abs(x), abs(y)))


def _fraction(value: Fraction) -> sympy.Rational:
    return sympy.Rational(value.numerator, value.denominator)
