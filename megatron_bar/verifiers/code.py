"""Code: run against tests in the sandbox.

The reference says what kind of tests: MBPP's fields (`test_list`, `test_setup_code`) or a list of
assert statements; HumanEval's (`prompt`, `test`, `entry_point`); or a list of programs' `input` and
`output`.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable
from typing import Any

from megatron_bar.runtime.errors import BarError
from megatron_bar.verifiers.reference import structured
from megatron_bar.verifiers.sandbox import checker, shared_sandbox

THRESHOLD = 0.99  # published: the pass rate, but 0 below this
_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)",
                    re.DOTALL | re.MULTILINE)
_PYTHON = ("", "py", "python", "python3")


def score(prompt: str, response: str, reference: Any, threshold: float = THRESHOLD) -> float:
    """The share of tests that the response's code passes, or 0 if that's below `threshold`.

    Raises BarError for a reference that isn't one of the three kinds.
    """
    passed = outcomes(response, reference)
    rate = sum(passed) / len(passed)
    return rate if rate >= threshold else 0.0


def outcomes(response: str, reference: Any) -> list[bool]:
    """The outcome of each of the reference's tests for the response's code."""
    match structured(reference, "code"):
        case {"entry_point": str(name), "test": str(test), "prompt": str(stub)}:
            return _check_function(extract(response), name, test, stub)
        case {"test_list": [*tests]} as fields if tests:
            return _asserts(extract(response), tests, fields.get("test_setup_code") or "")
        case [dict(), *_] as cases if all({"input", "output"} <= set(case) for case in cases):
            return [_matches(extract(response), case) for case in cases]
        case [str(), *_] as tests:
            return _asserts(extract(response), tests, "")
    raise BarError("a code reference is a list of assert statements, a list of {input, output}, "
                   "or an object with test_list, or with prompt, test and entry_point")


def extract(response: str) -> str:
    """The last block of Python code; without any, the whole response."""
    blocks = [block for language, block in _FENCE.findall(response) if language.lower() in _PYTHON]
    return blocks[-1] if blocks else response


def _asserts(source: str, tests: list[str], setup: str) -> list[bool]:
    return shared_sandbox().run_tests(source, tests, names_under_test(tests, setup), setup=setup)


def _check_function(source: str, name: str, test: str, stub: str) -> list[bool]:
    """`stub`: imports, helpers and the function's head. The response is all of it or the rest."""
    whole = f"{stub}\n{source}" if _defines(source, name) else stub + source
    # The stub itself is valid code, since its function has a docstring: the helpers that the test
    # uses come from there and not from the response.
    return shared_sandbox().run_tests(whole, [f"check({name})"], [name], before=stub, setup=test)


def _defines(source: str, name: str) -> bool:
    """By its looks: hostile text is never parsed here, since deep nesting can crash a parser."""
    return re.search(rf"^(?:(?:async )?def|class) {name}\b|^{name}\b[^\n=]*=", source,
                     re.MULTILINE) is not None


def _matches(source: str, case: dict[str, str]) -> bool:
    """Whether the program writes the expected lines; blanks at the ends of lines don't count."""
    result = shared_sandbox().run_program(source, case["input"])
    return result.finished and _lines(result.stdout) == _lines(case["output"])


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def names_under_test(tests: Iterable[str], setup: str) -> list[str]:
    """The names that the tests take from the tested code.

    Decided by the tests alone: if the code could decide, it would bring its own `sorted`. A name
    that Python has already is taken from the code only where there's no other (MBPP has a task to
    write `sum`).

    Raises BarError if the tests can't be parsed or use no such name.
    """
    try:
        trees = [ast.parse(text) for text in (setup, *tests)]
    except SyntaxError as error:
        raise BarError(f"a code reference holds a test that isn't Python: {error.text}") from None
    used, own = set(), set(checker.AT_HAND)
    for node in (node for tree in trees for node in ast.walk(tree)):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.arg(arg=name):
                own.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                own.add(name)
            case ast.alias(name=name, asname=other):
                own.add((other or name).split(".")[0])
    used -= own
    under_test = {name for name in used if not hasattr(builtins, name)}
    if not under_test:
        under_test = {node.func.id for tree in trees for node in _outermost_calls(tree)
                      if isinstance(node.func, ast.Name)}
    if not under_test:
        raise BarError("a code reference holds tests that call nothing")
    return sorted(under_test)


def _outermost_calls(tree: ast.AST) -> list[ast.Call]:
    if isinstance(tree, ast.Call):
        return [tree]
    return [call for child in ast.iter_child_nodes(tree) for call in _outermost_calls(child)]
