"""Math: word problems with two-digit numbers, solved column by column.

No column carries, so the digit facts of mid-training are all the arithmetic there is. A held-out
problem asks to apply them to a pair of numbers that training never showed, in any form.
"""

import random

from megatron_bar.data.toy.items import Item, exact_match
from megatron_bar.data.toy.words import COUNTED, NAMES

_STORIES = {
    "+": (
        "{name} has {left} {things} and finds {right}. How many now?",
        "{name} had {left} {things} and got {right} more. How many now?",
        "{left} {things} and {right} {things}: how many has {name}?",
    ),
    "-": (
        "{name} has {left} {things} and loses {right}. How many now?",
        "{name} had {left} {things} and sold {right}. How many now?",
        "{name} took {right} of {left} {things}. How many are left?",
    ),
}


def _apply(left: int, sign: str, right: int) -> int:
    return left + right if sign == "+" else left - right


def _numbers(rng: random.Random) -> tuple[int, str, int]:
    """Two two-digit numbers and a sign, with no carry in any column."""
    sign = rng.choice("+-")
    columns = []
    for lowest in (1, 0):
        whole = rng.randint(2 * lowest, 9)
        part = rng.randint(lowest, whole - lowest)
        columns.append((whole - part, part) if sign == "+" else (whole, part))
    (left_tens, right_tens), (left_ones, right_ones) = columns
    return 10 * left_tens + left_ones, sign, 10 * right_tens + right_ones


def _key(left: int, sign: str, right: int) -> str:
    """A sum is the same combination both ways round."""
    low, high = sorted((left, right))
    return f"{low}{sign}{high}"


def _steps(left: int, sign: str, right: int) -> str:
    columns = zip(reversed(str(left)), reversed(str(right)), strict=True)
    facts = (f"{a}{sign}{b}={_apply(int(a), sign, int(b))}" for a, b in columns)
    return ", ".join(facts)


def item(rng: random.Random) -> Item:
    left, sign, right = _numbers(rng)
    story = rng.choice(_STORIES[sign])
    words = {"name": rng.choice(NAMES), "things": rng.choice(COUNTED)}
    answer = str(_apply(left, sign, right))
    return Item(
        key=_key(left, sign, right),
        prompt=story.format(left=left, right=right, **words),
        reply=f"{_steps(left, sign, right)} #### {answer}",
        answer=answer,
    )


def text(rng: random.Random) -> tuple[str, str]:
    """The facts of both columns alone, or the whole sum, and its key."""
    left, sign, right = _numbers(rng)
    facts = _steps(left, sign, right)
    worked = f"{left}{sign}{right}: {facts} #### {_apply(left, sign, right)}"
    return rng.choice((facts, worked)), _key(left, sign, right)


def score(answer: str, response: str) -> float:
    """The number after the last #### counts, as in GSM8K."""
    return exact_match(answer, response.rpartition("####")[2].strip())
