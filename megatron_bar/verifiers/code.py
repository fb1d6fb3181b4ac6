"""Code: run against tests in the sandbox.

The reference says what kind of tests (code_tests.py): asserts, functions or classes of tests,
HumanEval's or MBPP's fields, inputs and outputs of programs or of a function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from megatron_bar.verifiers.code_blocks import complete, defined_names, extract
from megatron_bar.verifiers.code_tests import FunctionTests, ProgramTests, read
from megatron_bar.verifiers.sandbox import Limits, shared_sandbox

THRESHOLD = 0.99  # published: the pass rate, but 0 below this
_PROGRAM_SECONDS = 1.0  # published, for each run; a function's tests have Limits.cpu together
_ITEM_SECONDS = 10  # times as long as one run may take, for all programs of an item
_WALL_SECONDS = 30  # likewise, on a busy machine


def score(prompt: str, response: str, reference: Any, threshold: float = THRESHOLD) -> float:
    """The share of tests that the response's code passes, or 0 if that's below `threshold`.

    Raises BarError for a reference that is of no kind known.
    """
    tests = read(reference)
    enough = math.ceil(threshold * len(tests) - 1e-9)
    passed = _outcomes(response, tests, may_fail=len(tests) - enough)
    rate = sum(passed) / len(passed)
    return rate if rate >= threshold else 0.0


def outcomes(response: str, reference: Any) -> list[bool]:
    """The outcome of each of the reference's tests for the response's code."""
    tests = read(reference)
    return _outcomes(response, tests, may_fail=len(tests))


def _outcomes(response: str, tests: FunctionTests | ProgramTests, may_fail: int) -> list[bool]:
    """The outcomes; where more than `may_fail` tests fail, the rest may be left out as failed."""
    if isinstance(tests, ProgramTests):
        return _run_programs(extract(response), tests, may_fail)
    sources = extract(response, tests.names)
    if tests.stub:
        sources = complete(tests.stub, tests.names[0], sources)
    if tests.may_be_method:
        sources = [_with_function(source, tests.names[0]) for source in sources]
    return shared_sandbox().run_tests(
        sources,
        tests.tests,
        tests.names,
        before=tests.stub,
        setup=tests.setup,
        shared=tests.shared,
        limits=_limits(tests.seconds or Limits.cpu),
    )


def _with_function(source: str, name: str) -> str:
    """The source, with a function for the method of its class Solution, as LeetCode asks for."""
    if "Solution" in (defined := defined_names(source)) and name not in defined:
        return f"{source}\n{name} = Solution().{name}\n"
    return source


def _run_programs(sources: Sequence[str], tests: ProgramTests, may_fail: int) -> list[bool]:
    """One that overruns its time ends the item, so that an endless loop costs its limit once."""
    limits = _limits(tests.seconds or _PROGRAM_SECONDS)
    left = _ITEM_SECONDS * limits.cpu
    passed: list[bool] = []
    for stdin, expected in tests.cases:
        result = shared_sandbox().run_program(sources, stdin, limits)
        passed.append(result.finished and _lines(result.stdout) == _lines(expected))
        left -= result.seconds
        if not result.in_time or left < 0 or passed.count(False) > may_fail:
            break
    return passed + [False] * (len(tests) - len(passed))


def _limits(seconds: float) -> Limits:
    return Limits(cpu=seconds, wall=max(Limits.wall, _WALL_SECONDS * seconds))


def _lines(text: str) -> list[str]:
    """Blanks at the ends of lines don't count."""
    return [line.rstrip() for line in text.rstrip().splitlines()]
