"""Code: one-line Python functions, verified by what they compute, not by how they are written."""

import ast
import operator
import random
import re
from collections.abc import Callable

from megatron_bar.data.toy.items import Item
from megatron_bar.data.toy.words import LETTERS

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_VERBS = {"+": "add {}", "-": "subtract {}", "*": "multiply by {}"}
_NAMES = LETTERS[:3]
_VARIABLES = LETTERS[3:]
_PROMPTS = (
    "Write {name}({variable}): {first}, then {second}.",
    "Python function {name} of {variable}: {first}, then {second}.",
    "Define {name}({variable}) to {first} and then {second}.",
)
_FUNCTION = re.compile(r"def (\w+)\((\w+)\):\s+return ([\w +*()-]+)")
_PROBES = (-3, 0, 1, 2, 7, 11)
_LONGEST_REPLY = 200


def _function(rng: random.Random) -> tuple[dict[str, str], str, str]:
    """The words of a request, the code that answers it, and its key."""
    signs, numbers = rng.choices("+-*", k=2), [rng.randint(2, 9) for _ in range(2)]
    first, second = (_VERBS[s].format(n) for s, n in zip(signs, numbers, strict=True))
    name, variable = rng.choice(_NAMES), rng.choice(_VARIABLES)
    inner = f"{variable} {signs[0]} {numbers[0]}"
    if signs[1] == "*" and signs[0] != "*":
        inner = f"({inner})"
    code = f"def {name}({variable}):\n    return {inner} {signs[1]} {numbers[1]}"
    words = {"name": name, "variable": variable, "first": first, "second": second}
    return words, code, f"{first}, {second}"


def item(rng: random.Random) -> Item:
    words, code, key = _function(rng)
    return Item(key=key, prompt=rng.choice(_PROMPTS).format(**words), reply=code, answer=code)


def text(rng: random.Random) -> tuple[str, str]:
    """A commented function, and its key."""
    words, code, key = _function(rng)
    return f"# {words['first']}, then {words['second']}\n{code}", key


def _evaluate(node: ast.expr, names: dict[str, int]) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, names)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left, names), _evaluate(right, names))
    raise ValueError(f"not arithmetic: {ast.dump(node)}")


def _behaviour(source: str) -> tuple[str, list[int]]:
    """A function's name and its values at the probes. Model output is parsed, never executed."""
    match = _FUNCTION.fullmatch(source)
    if match is None or len(source) > _LONGEST_REPLY:
        raise ValueError("not a one-line function")
    name, variable, expression = match.groups()
    body = ast.parse(expression.strip(), mode="eval").body
    return name, [_evaluate(body, {variable: probe}) for probe in _PROBES]


def score(answer: str, response: str) -> float:
    try:
        return float(_behaviour(response) == _behaviour(answer))
    except (ValueError, SyntaxError):
        return 0.0
