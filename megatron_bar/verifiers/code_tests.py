"""References of the code verifier, and the tests that they hold.

- Tests in Python: a list of texts, or one text. Asserts, functions `test_...`, classes of unittest.
- MBPP's fields: `test_list`, and where there are such `test_imports` and `test_setup_code`.
- HumanEval's: `test`, `entry_point`, `prompt`.
- Programs: a list of `input` and `output`; or one object with `inputs` and `outputs`, as APPS has
  it, for programs, or with `fn_name` for a function. Texts, numbers, or lists of lines.

An object may say by `time_limit` how many seconds its tests may take, or each of its programs.
"""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_bar.runtime.errors import BarError
from megatron_bar.verifiers.sandbox import checker, judging

_MAX_SECONDS = 60.0
_TESTED_MODULES = ("solution", "main")  # what tests import the tested code from
_OWN = {*checker.AT_HAND, *judging.FUNCTIONS}
_KINDS = (
    "a code reference is a list of assert statements or their text, a list of {input, "
    "output}, or an object with test_list, with test and entry_point, or with inputs and "
    "outputs"
)


@dataclass(frozen=True)
class FunctionTests:
    """Statements that call what the response defines under `names`."""

    tests: Sequence[str]
    names: Sequence[str]
    setup: str = ""
    shared: str = ""  # imports and classes of the setup that the tested code has as well
    stub: str = ""  # the head of the function, which the response may only complete
    may_be_method: bool = False  # of a class Solution
    seconds: float | None = None

    def __len__(self) -> int:
        return len(self.tests)


@dataclass(frozen=True)
class ProgramTests:
    """Standard inputs and the outputs that are expected of them."""

    cases: Sequence[tuple[str, str]]
    seconds: float | None = None

    def __len__(self) -> int:
        return len(self.cases)


def read(reference: Any) -> FunctionTests | ProgramTests:
    """The tests of a reference. Raises BarError for one that is none of the kinds."""
    if isinstance(reference, str):
        reference = _from_text(reference)
    match reference:
        case str(text) if text.strip():
            return _statements([text])
        case [str(), *_] as texts if all(isinstance(text, str) for text in texts):
            return _statements(texts)
        case [dict(), *_] as cases if all(
            isinstance(case, dict) and {"input", "output"} <= set(case) for case in cases
        ):
            return ProgramTests([(_text(case["input"]), _text(case["output"])) for case in cases])
        case {"entry_point": str(name), "test": str(test)} as fields:
            return FunctionTests(
                [f"check({name})"],
                [name.partition("(")[0].partition(".")[0]],
                setup=test,
                stub=fields.get("prompt") or "",
                seconds=_seconds(fields),
            )
        case {"test_list": [str(), *_] | str() as tests} as fields if tests:
            return _statements(
                [tests] if isinstance(tests, str) else tests,
                fields.get("test_imports"),
                fields.get("test_setup_code"),
                _seconds(fields),
            )
        case {"fn_name": str(name), "inputs": [*inputs], "outputs": [*outputs]} as fields if name:
            return _calls(name, inputs, outputs, _seconds(fields))
        case {"inputs": [_, *_] as inputs, "outputs": [*outputs]} as fields:
            _check_pairs(inputs, outputs)
            return ProgramTests([*zip(map(_text, inputs), map(_text, outputs))], _seconds(fields))
        case {"input": given, "output": expected} as fields:
            return ProgramTests([(_text(given), _text(expected))], _seconds(fields))
        case {"input_output": (str() | dict()) as nested}:
            return read(nested)
    raise BarError(_KINDS)


def names_under_test(tests: Iterable[str], setup: str) -> list[str]:
    """The names that the tests take from the tested code.

    Decided by the tests alone: if the code could decide, it would bring its own `sorted`. A name
    that Python has already is taken from the code only where there's no other (MBPP has a task to
    write `sum`).

    Raises BarError if the tests can't be parsed or use no such name.
    """
    trees = [_parsed(text) for text in (setup, *tests)]
    used, own = set(), set(_OWN)
    for node in (node for tree in trees for node in ast.walk(tree)):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.arg(arg=name):
                own.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                own.add(name)
            case ast.ExceptHandler(name=str(name)):
                own.add(name)
            case ast.alias(name=name, asname=other):
                own.add((other or name).split(".")[0])
    used -= own | {"__name__", "__file__"}
    under_test = {name for name in used if not hasattr(builtins, name)}
    if not under_test:
        under_test = {
            node.func.id
            for tree in trees
            for node in _outermost_calls(tree)
            if isinstance(node.func, ast.Name) and node.func.id not in own
        }
    if not under_test:
        raise BarError("a code reference holds tests that call nothing")
    return sorted(under_test)


def _from_text(text: str) -> Any:
    """What a text means as JSON, or the text itself if it is Python."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        problem = error.msg
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        raise BarError(
            f"a code reference given as text must be JSON or tests in Python: {problem}"
        ) from None
    return text


def _statements(
    texts: Sequence[str], imports: Any = None, setup: Any = None, seconds: float | None = None
) -> FunctionTests:
    """`imports`: statements, a list or text; `setup`: text."""
    lines = [imports] if isinstance(imports, str) else imports or []
    given = "\n".join([*map(str, lines), str(setup or "")])
    parts, tests = [given], []
    for text in texts:
        definitions, own = _split(text)
        parts.append(definitions)
        tests += own
    whole = "\n".join(filter(None, parts))
    if not tests:
        raise BarError(
            "a code reference holds no test: no assert, no function test_..., no class "
            "of unittest with such"
        )
    return FunctionTests(
        tests, names_under_test(tests, whole), whole, _shared(given), seconds=seconds
    )


def _split(text: str) -> tuple[str, list[str]]:
    """A text's definitions, and its tests: each with the statements that go before it."""
    definitions, tests, pending = [], [], []
    called = set()
    for node in _parsed(text).body:
        match node:
            case ast.ImportFrom(module=module) if module in _TESTED_MODULES:
                definitions += [
                    f"{alias.asname} = {alias.name}" for alias in node.names if alias.asname
                ]
            case (
                ast.Import()
                | ast.ImportFrom()
                | ast.FunctionDef()
                | ast.AsyncFunctionDef()
                | ast.ClassDef()
            ):
                definitions.append(ast.unparse(node))
            case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
                pass  # runs the tests where they are a program
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="unittest")))):
                pass  # likewise
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign() | ast.Expr(value=ast.Constant()):
                pending.append(ast.unparse(node))
            case _:
                called |= {
                    call.func.id
                    for call in _outermost_calls(node)
                    if isinstance(call.func, ast.Name)
                }
                tests.append("\n".join([*pending, ast.unparse(node)]))
                pending = []
    for node in _parsed("\n".join(definitions)).body:
        match node:
            case ast.FunctionDef(name=name) if name.startswith("test") and name not in called:
                tests.append(f"{name}()")
            case ast.ClassDef(name=name, bases=bases) if any(
                ast.unparse(base).endswith("TestCase") for base in bases
            ):
                tests += [
                    f"run_method_of_unittest({name}, {method.name!r})"
                    for method in node.body
                    if isinstance(method, ast.FunctionDef) and method.name.startswith("test")
                ]
    return "\n".join(definitions), tests


def _shared(setup: str) -> str:
    """The imports and classes of a setup. Its functions may know what is expected."""
    return "\n".join(
        ast.unparse(node)
        for node in _parsed(setup).body
        if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef)
    )


def _calls(
    name: str, inputs: Sequence[Any], outputs: Sequence[Any], seconds: float | None
) -> FunctionTests:
    """A call for each list of arguments. Texts hold them as JSON, one a line."""
    _check_pairs(inputs, outputs)
    if not name.isidentifier():
        raise BarError(f"a code reference has the fn_name {name!r}, which isn't a name")
    try:
        tests = [
            "assert same_as_json({}(*{!r}), {!r})".format(
                name,
                [json.loads(line) for line in given.splitlines()]
                if isinstance(given, str)
                else list(given),
                json.loads(expected)
                if isinstance(given, str) and isinstance(expected, str)
                else expected,
            )
            for given, expected in zip(inputs, outputs)
        ]
    except (TypeError, json.JSONDecodeError) as error:
        raise BarError(
            f"a code reference with fn_name needs a list of arguments for each input: {error}"
        ) from None
    return FunctionTests(tests, [name], may_be_method=True, seconds=seconds)


def _check_pairs(inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    if len(inputs) != len(outputs) or not inputs:
        raise BarError(
            f"a code reference has {len(inputs)} inputs and {len(outputs)} outputs; "
            "each input needs one output"
        )


def _text(value: Any) -> str:
    """What a program reads or writes: a text, a number, or a list of lines."""
    match value:
        case str():
            return value
        case [*lines] if all(isinstance(line, str | int | float) for line in lines):
            return "\n".join(map(_text, lines))
        case int() | float():
            return str(value)
    raise BarError(
        "a code reference has an input or output that is neither text nor a number nor "
        f"a list of lines, but {type(value).__name__}"
    )


def _seconds(fields: dict[str, Any]) -> float | None:
    match fields.get("time_limit"):
        case None:
            return None
        case int() | float() as seconds if 0 < seconds <= _MAX_SECONDS:
            return float(seconds)
        case other:
            raise BarError(
                f"a code reference has the time_limit {other!r}; it is a number of "
                f"seconds up to {_MAX_SECONDS:.0f}"
            )


def _parsed(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise BarError(
            f"a code reference holds a test that isn't Python: {(error.text or '').strip()}"
        ) from None


def _outermost_calls(tree: ast.AST) -> list[ast.Call]:
    if isinstance(tree, ast.Call):
        return [tree]
    return [call for child in ast.iter_child_nodes(tree) for call in _outermost_calls(child)]
