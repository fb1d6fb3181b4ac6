"""Mathematics: the final answer of a response, compared with the reference's as mathematics.

What needs no algebra (numbers in all spellings, units, lists and intervals of numbers, words) is
compared here, in milliseconds. The rest goes to a process that forks for each comparison, with
math-verify's parser and sympy: beyond a limit, answers count as different.

Rules where one could decide otherwise:
- 25% is a quarter, and 25, too: a problem may ask for either. It isn't 0.25%.
- A ratio, 2:3, is another answer than the fraction, and the same as 4:6.
- A bare list has no order, brackets give it one, braces make it a set: `2, 1` is `1, 2` and
  `{1, 2}`, but not `(1, 2)`.
- A number in another base is that number in no other spelling: 21_7 is neither 21 nor 15, which
  would reward a repeated question.
- A unit that one of two answers leaves out is ignored, a known one that differs is not; 5 km is
  5000 m.
- Capitals matter for letters, not for words.
- A decimal is an exact number if it is that number rounded or cut to six places or more.
- A comma before three digits parts thousands, before others decimals where the other answer has
  some.

It can't see how an answer came about, nor that it is in the form that was asked for: 2/4 for 1/2.
"""

from __future__ import annotations

import atexit
import functools
from typing import Any

from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.pool import cores
from megatron_bar.verifiers.mathematics.answer import LONGEST, final_answer, marked_answer
from megatron_bar.verifiers.mathematics.compare import same
from megatron_bar.verifiers.mathematics.forms import Words, read
from megatron_bar.verifiers.mathematics.numbers import Number
from megatron_bar.verifiers.reference import structured
from megatron_bar.verifiers.workers import Worker, WorkerPool

PROCESSOR_SECONDS = 2  # for one comparison; beyond it, the answers count as different
_SECONDS = 10.0  # the same on a busy machine, where others have the processor
_GRACE_SECONDS = 5.0  # beyond that, before the process that forks is given up


def score(prompt: str, response: str, reference: Any) -> float:
    """1 if the response's final answer equals the reference's, else 0.

    The reference is the answer alone, a worked solution that ends with it, or a list of answers
    any of which is right. Raises BarError for anything else.
    """
    for expected in accepted_answers(reference):
        form = read(expected) if len(expected) <= LONGEST else None
        given = final_answer(response, in_words=isinstance(form, Words))
        if given is not None and equal(given, expected):
            return 1.0
    return 0.0


def accepted_answers(reference: Any) -> list[str]:
    """The answers that a reference allows. Raises BarError if it names none."""
    if isinstance(reference, str) and reference.lstrip().startswith('["'):
        reference = structured(reference, "math")
    answers = reference if isinstance(reference, (list, tuple)) else [reference]
    texts = [str(answer).strip() for answer in answers if isinstance(answer, (str, int, float))]
    if not texts or len(texts) < len(answers) or not all(texts):
        raise BarError(
            "a math reference is a text, a number, or a list of accepted ones, not "
            f"{str(reference)[:80]!r}"
        )
    return [marked_answer(text) or text for text in texts]


def equal(given: str, expected: str) -> bool:
    """Whether two answers mean the same. False if that can't be decided in time."""
    if max(len(given), len(expected)) > LONGEST:
        return False
    try:
        return same(read(given), read(expected), _NoAlgebra())
    except _NeedsAlgebra:
        pass
    with _pool().worker() as worker:
        reply = worker.ask(
            [given, expected, PROCESSOR_SECONDS, _SECONDS], _SECONDS + _GRACE_SECONDS
        )
    return reply is not None and reply["equal"]


class _NeedsAlgebra(Exception):
    """The answers' spelling and structure don't decide."""


class _NoAlgebra:
    """See Algebra; gives up where that is asked."""

    def values(self, one: str, other: str, decimal: Number | None) -> bool:
        raise _NeedsAlgebra

    def equations(self, one: tuple[str, str], other: tuple[str, str]) -> bool:
        raise _NeedsAlgebra

    def relations(self, one: str, other: str) -> bool:
        raise _NeedsAlgebra


@functools.cache
def _pool() -> WorkerPool:
    def command(control: int) -> list[str]:
        return ["-m", "megatron_bar.verifiers.mathematics.worker", str(control)]

    pool = WorkerPool(lambda: Worker("the math verifier", command), cores())
    atexit.register(pool.close)
    return pool
