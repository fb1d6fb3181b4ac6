"""The parts of tests where a reference doesn't spell them out as statements."""

from __future__ import annotations

import functools
import sys
import unittest
from collections.abc import Callable
from typing import Any

# Functions of numpy that find that an array without elements equals whatever it is compared with.
_COMPARISONS = {
    "numpy": ("allclose",),
    "numpy.testing": (
        "assert_allclose",
        "assert_almost_equal",
        "assert_array_almost_equal",
        "assert_array_equal",
        "assert_equal",
        "assert_array_less",
    ),
}


def run_method(case: type[unittest.TestCase], method: str) -> None:
    """Run one method of a class of unittest. Raises AssertionError unless it passed."""
    result = unittest.TestResult()
    unittest.TestSuite([case(method)]).run(result)
    assert result.wasSuccessful() and result.testsRun == 1 and not result.skipped


def same_as_json(got: Any, expected: Any) -> bool:
    """Whether a value is the one that JSON has, as APPS compares them.

    Its files may hold the value in a list of its own; and JSON has neither tuples nor keys other
    than text.
    """
    got = _as_json(got)
    return got == expected or (
        isinstance(expected, list) and len(expected) == 1 and got == expected[0]
    )


def _as_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    return value


FUNCTIONS = {"run_method_of_unittest": run_method, "same_as_json": same_as_json}


def refuse_empty_arrays() -> None:
    """Let nothing equal an empty array in the tests but an empty one.

    `allclose([], 5)` is true, a reward that a policy would find.
    """
    for module, names in _COMPARISONS.items():
        for name in names if module in sys.modules else ():
            compare = getattr(sys.modules[module], name)
            setattr(sys.modules[module], name, _not_empty(compare))


def _not_empty(compare: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(compare)
    def checked(a: Any, b: Any, *arguments: Any, **keywords: Any) -> Any:
        size = sys.modules["numpy"].size
        assert (size(a) == 0) == (size(b) == 0), "only one of two arrays is empty"
        return compare(a, b, *arguments, **keywords)

    return checked
