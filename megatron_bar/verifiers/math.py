"""Mathematics: the final answer of a response, compared symbolically by math-verify.

Plain numbers are compared here, exactly. Everything else goes to a process that forks for each
comparison (math_worker.py): sympy can be made to run, or to grow, without end, inside C code where
no signal or thread stops it, but a process can be killed.
"""

from __future__ import annotations

import atexit
import functools
import re
from fractions import Fraction
from typing import Any

from megatron_bar.runtime.pool import cores
from megatron_bar.verifiers.workers import Worker, WorkerPool

SECONDS = 5.0  # for one comparison; beyond it, the answers count as different
_GRACE_SECONDS = 5.0  # beyond that, before the process that forks is given up
_LONGEST = 1000  # characters; no final answer is longer
_TAIL = 3000  # characters in which it is looked for: patterns can take the square of this

_BOXED = re.compile(r"\\f?boxed\s*\{")
_AFTER_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_ANNOUNCED = re.compile(r"final answer is:?\s*(.+?)(?:\.?\s*I hope it is correct|\.?\s*(?:\n|$))",
                        re.IGNORECASE)
_LATEX = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:\s*/\s*\d+)?%?")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")  # within a pair of $, a sign that it's money
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mbox|begin|end)\s*\{[^}]*\}")
_PLAIN = re.compile(r"([-+]?)\$?(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?")


def score(prompt: str, response: str, reference: Any) -> float:
    """1 if the response's final answer equals the reference's, else 0.

    The reference is the answer alone, or a worked solution that ends with it.
    """
    given = final_answer(response)
    text = str(reference).strip()
    expected = _marked_answer(text) or text
    return float(given is not None and equal(given, expected))


def final_answer(response: str) -> str | None:
    r"""The last \boxed{}, else what follows the last ####, else "final answer is", else the last
    LaTeX or number, whichever ends later. None if there's none near the response's end."""
    tail = response[-_TAIL:]
    return _marked_answer(tail) or _last_expression(tail)


def equal(given: str, expected: str) -> bool:
    """Whether two answers mean the same. False if that can't be decided within SECONDS."""
    if max(len(given), len(expected)) > _LONGEST:
        return False
    numbers = _plain_number(given), _plain_number(expected)
    if None not in numbers:
        return numbers[0] == numbers[1]
    with _pool().worker() as worker:
        reply = worker.ask([given, expected, SECONDS], SECONDS + _GRACE_SECONDS)
    return reply is not None and reply["equal"]


def _marked_answer(text: str) -> str | None:
    if boxed := _last_boxed(text):
        return boxed
    for marker in (_AFTER_HASHES, _ANNOUNCED):
        if found := marker.findall(text):
            return _unframed(found[-1])
    return None


def _last_boxed(text: str) -> str | None:
    for match in reversed(list(_BOXED.finditer(text))):
        depth = 1
        for place in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1] != "\\" else 0
            if depth == 0:
                return text[match.end():place].strip() or None
    return None


def _unframed(text: str) -> str:
    """Without $ around it and a full stop behind it; of words with one number in them, the number.
    """
    text = text.strip().rstrip(".").strip()
    if match := _LATEX.fullmatch(text):
        return next(group for group in match.groups() if group).strip()
    numbers = [match.group() for match in _NUMBER.finditer(text) if match.group().strip("+-%/ ")]
    return numbers[0] if len(numbers) == 1 and _WORD.search(text) and "\\" not in text else text


def _last_expression(text: str) -> str | None:
    latex = [match for match in _LATEX.finditer(text)
             if not _WORD.search(_TEXT.sub("", match.group()))]
    numbers = [match for match in _NUMBER.finditer(text) if match.group().strip("+-%/ ")]
    if not latex and not numbers:
        return None
    last = max(latex[-1:] + numbers[-1:], key=lambda match: match.end())
    return _unframed(last.group())


def _plain_number(text: str) -> Fraction | None:
    """The value of a decimal number, perhaps with a $ and thousands' commas."""
    text = text.strip().replace("\\$", "$").replace("\\!", "").replace("{,}", ",")
    match = _PLAIN.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        return None
    return Fraction(match[1] + (match[2] or "0").replace(",", "") + (match[3] or ""))


@functools.cache
def _pool() -> WorkerPool:
    def command(control: int) -> list[str]:
        return ["-m", "megatron_bar.verifiers.math_worker", str(control)]

    pool = WorkerPool(lambda: Worker("the math verifier", command), cores())
    atexit.register(pool.close)
    return pool
