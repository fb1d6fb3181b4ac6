"""Whether held-out items stand in what a recipe trains on: part of `verify-data`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_bar.data.bad_items import BadItems
from megatron_bar.data.ngrams import Words
from megatron_bar.data.overlap import SHARE, N, Overlap
from megatron_bar.data.sources import open_source, source_name
from megatron_bar.recipe.fields import ITEMS, PAIRS, TEXTS
from megatron_bar.runtime.console import say
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import write_json_lines
from megatron_bar.stages.stage import Reading

_AT_ONCE = 1 << 22  # characters of training text in memory
_MOST = 1 << 31  # that are looked at in a source; they take minutes


def find_contamination(found: Sequence[Reading], seed: int, target: Path) -> None:
    """Look for the held-out items among `found` in all else that is read there.

    Says how many of each source's items overlap with training data (`data.overlap`), and what can't
    be read. They are listed in the file `target`, a JSON object a line; without such there is none.
    """
    asked = {}  # by what people call them: the prompts, and what is known of them so far
    for reading in found:
        if reading.form == ITEMS and (prompts := _prompts(reading, seed)):
            asked[f"{reading.where}, {source_name(reading.source)}"] = prompts, Overlap(prompts)
    listed: list[dict[str, Any]] = []
    for reading in found if asked else ():
        if reading.form != ITEMS:
            listed += _found_in(reading, seed, asked)
    target.unlink(missing_ok=True)
    for task, (prompts, overlap) in asked.items():
        also = f"; {overlap.unexamined} have no words of their own" if overlap.unexamined else ""
        say(
            f"{task}: {len(overlap.found)} of {len(prompts)} items share {SHARE:.0%} of their "
            f"words or more, in runs of {N}, with a text of training{also}"
        )
    if listed:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(target, listed)
        say(f"held-out items that training gives away are listed in {target}")


def _found_in(
    reading: Reading, seed: int, asked: dict[str, tuple[list[str], Overlap]]
) -> list[dict[str, Any]]:
    """The items that a source of training gives away and none before it did."""
    before = {task: set(overlap.found) for task, (_, overlap) in asked.items()}
    try:
        for texts in _batches(_texts(reading, seed)):
            words = Words.of(texts)
            for _, overlap in asked.values():
                overlap.add(words)
    except BarError as error:
        say(
            f"{reading.where}: {source_name(reading.source)} isn't searched for held-out items: "
            f"{error}"
        )
    return [
        {
            "of": task,
            "item": int(item) + 1,
            "prompt": prompts[item],
            "share": round(float(overlap.share_I[item]), 3),
            "in": reading.where,
            "source": source_name(reading.source),
        }
        for task, (prompts, overlap) in asked.items()
        for item in overlap.found
        if item not in before[task]
    ]


def _prompts(reading: Reading, seed: int) -> list[str]:
    """The last question of each item; none where the source can't be read, which others tell."""
    try:
        drawn = open_source(reading.source, seed, texts=False)
        return [
            next((_content(m) for m in reversed(c.messages) if m["role"] == "user"), "")
            for c in drawn.conversations(bad=BadItems(skip=True))
        ]
    except BarError:
        return []


def _texts(reading: Reading, seed: int) -> Iterator[str]:
    """The texts of a source, of conversations each message's."""
    drawn = open_source(reading.source, seed, texts=reading.form == TEXTS)
    bad = BadItems(skip=True)
    if reading.form == TEXTS:
        yield from drawn.texts(bad=bad)
    elif reading.form == PAIRS:
        for pair in drawn.preferences(bad=bad):
            yield from map(_content, [*pair.chosen, *pair.rejected])
    else:
        for conversation in drawn.conversations(bad=bad):
            yield from map(_content, conversation.messages)


def _content(message: dict[str, Any]) -> str:
    return message.get("content") or ""


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """Texts of some _AT_ONCE characters at a time, and of _MOST at most."""
    batch: list[str] = []
    size = total = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _AT_ONCE:
            yield batch
            total += size
            batch, size = [], 0
            if total >= _MOST:
                say(
                    f"the first {total / 1e9:.1f} billion characters of it are searched for "
                    "held-out items"
                )
                return
    if batch:
        yield batch
