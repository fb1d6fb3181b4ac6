"""A seeded world of tiny tasks, in which the whole pipeline shows its effects in minutes on a CPU.

General chat is what the base model learns. Math, code, tool use and safety are what experts add.
All is a function of (domain, split, count, seed), the same on every platform. No torch here.
"""

import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from megatron_bar.data.toy import arithmetic, coding, general, safety, tools
from megatron_bar.data.toy.chat import CHAT_TEMPLATE
from megatron_bar.data.toy.items import Item, is_heldout, strip_end

__all__ = ["ALL_DOMAINS", "CHAT_TEMPLATE", "DOMAINS", "conversations", "score", "texts"]

DOMAINS = ("math", "code", "tool_use", "safety")
ALL_DOMAINS = ("general", *DOMAINS)
_ITEMS: dict[str, Callable[[random.Random], Item]] = {
    "general": general.item,
    "math": arithmetic.item,
    "code": coding.item,
    "tool_use": tools.item,
    "safety": safety.item,
}


def _question(rng: random.Random) -> tuple[str, str]:
    """What people ask in any domain, without an answer: the base has read the words."""
    asked = _ITEMS[rng.choice(DOMAINS)](rng)
    return asked.prompt, asked.key


_TEXTS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "questions": _question,
    "general": general.text,
    "math": arithmetic.text,
    "code": coding.text,
}

_SCORES: dict[str, Callable[[str, str], float]] = {
    "general": general.score,
    "math": arithmetic.score,
    "code": coding.score,
    "tool_use": tools.score,
    "safety": safety.score,
}
_SPLITS = ("train", "heldout")


def conversations(domain: str, split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Chat items. Held-out ones share no combination of operands, values or acts with training."""
    draw = _ITEMS[domain]
    items = (draw(rng) for rng in _endless(f"chat/{domain}/{split}/{seed}"))
    chosen = (item for item in items if _belongs(item.key, split))
    return [item.conversation(f"toy/{domain}") for item in islice(chosen, count)]


def texts(domain: str, split: str, count: int, seed: int) -> list[str]:
    """Plain statements, held out by the same combinations as the conversations."""
    if domain not in _TEXTS:
        raise ValueError(f"no texts for {domain!r}; there are texts for {', '.join(_TEXTS)}")
    draw = _TEXTS[domain]
    drawn = (draw(rng) for rng in _endless(f"text/{domain}/{split}/{seed}"))
    return list(islice((text for text, key in drawn if _belongs(key, split)), count))


def score(domain: str, answer: str, response: str) -> float:
    """The score of a response, in [0, 1]. End tokens after the response are ignored."""
    return _SCORES[domain](answer, strip_end(response))


def _endless(seed: str) -> Iterator[random.Random]:
    rng = random.Random(seed)
    while True:
        yield rng


def _belongs(key: str, split: str) -> bool:
    if split not in _SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(_SPLITS)}")
    return is_heldout(key) == (split == "heldout")
