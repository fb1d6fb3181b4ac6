"""General chat and prose: everything the base model can do.

Branches keep the base's attention frozen, so whatever a domain needs from attention (copying words
and digits, looking a name up, pairing digits by column) must be a skill of general chat.
"""

import random

from megatron_bar.data.toy.items import Item, exact_match
from megatron_bar.data.toy.words import COLOURS, DIGIT_WORDS, NAMES, NOUNS, OPPOSITES, ORDINALS


def _repeat(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(NOUNS)
    return f"Repeat the word {word}.", word


def _swap(rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(NOUNS, 2)
    return f"Swap {first} and {second}.", f"{second} {first}"


def _choose(rng: random.Random) -> tuple[str, str]:
    words, index = rng.sample(NOUNS, 3), rng.randrange(3)
    return f"Which word is {ORDINALS[index]}: {', '.join(words)}?", words[index]


def _recall(rng: random.Random) -> tuple[str, str]:
    names, words, index = rng.sample(NAMES, 2), rng.sample(NOUNS, 2), rng.randrange(2)
    facts = " ".join(f"{name} has the {word}." for name, word in zip(names, words, strict=True))
    return f"{facts} What does {names[index]} have?", f"the {words[index]}"


def _colour(rng: random.Random) -> tuple[str, str]:
    name, word, colour = rng.choice(NAMES), rng.choice(NOUNS), rng.choice(COLOURS)
    return f"{name} has a {colour} {word}. What colour is the {word}?", colour


def _quote(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(NOUNS)
    return f"Put {word} in quotes.", f'"{word}"'


def _wrap(rng: random.Random) -> tuple[str, str]:
    inner, outer = rng.sample(NOUNS, 2)
    return f"Wrap {inner} in {outer}.", f"{outer}({inner})"


def _reverse(rng: random.Random) -> tuple[str, str]:
    number = str(rng.randrange(10, 100))
    return f"Reverse the digits of {number}.", number[::-1]


def _columns(rng: random.Random) -> tuple[str, str]:
    left, right = str(rng.randrange(10, 100)), str(rng.randrange(10, 100))
    return f"Line up {left} and {right}.", f"{left[1]} {right[1]}, {left[0]} {right[0]}"


def _repeat_numbers(rng: random.Random) -> tuple[str, str]:
    left, right = rng.randrange(2, 100), rng.randrange(2, 100)
    return f"Repeat {left} and {right}.", f"{left} and {right}"


def _digit(rng: random.Random) -> tuple[str, str]:
    digit, name = rng.randrange(10), rng.choice(NAMES)
    return f"{name} asks for the digit {DIGIT_WORDS[digit]}.", str(digit)


def _opposite(rng: random.Random) -> tuple[str, str]:
    word, name = rng.choice(tuple(OPPOSITES)), rng.choice(NAMES)
    return f"{name} asks for the opposite of {word}.", OPPOSITES[word]


_TASKS = (
    _repeat, _swap, _choose, _recall, _colour, _quote,
    _wrap, _reverse, _columns, _repeat_numbers, _digit, _opposite,
)  # fmt: skip


def item(rng: random.Random) -> Item:
    prompt, reply = rng.choice(_TASKS)(rng)
    return Item(key=prompt, prompt=prompt, reply=reply, answer=reply)


def text(rng: random.Random) -> tuple[str, str]:
    """A sentence or two of prose, and its key."""
    name, place, thing = rng.choice(NAMES), *rng.sample(NOUNS, 2)
    colour, word = rng.choice(COLOURS), rng.choice(tuple(OPPOSITES))
    prose = rng.choice(
        (
            f"{name} saw a {colour} {thing} near the {place}. The {thing} was {colour}.",
            f"{name} took the {thing} to the {place}. Now the {thing} is at the {place}.",
            f"If it is not {word}, it is {OPPOSITES[word]}, said {name}.",
            f"{name} put the {thing} and the {place} away: first the {thing}, then the {place}.",
        )
    )
    return prose, prose


def score(answer: str, response: str) -> float:
    return exact_match(answer, response)
