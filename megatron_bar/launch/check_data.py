"""Whether a recipe's data can be read, by a sample of each source's records.

A source is opened as its stage opens it, and its sample goes through what the stage does:
templates, tokens and what carries loss, prompts and the references that verifiers read. Of each
source the first hundred records are looked at, and a hundred spread over the rest.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_bar.data.bad_items import BadItems
from megatron_bar.data.chat import chat_template, prompt_ids
from megatron_bar.data.chat_format import check_prompt_length
from megatron_bar.data.encoding import encode_conversations, encode_preferences, encode_texts
from megatron_bar.data.json_text import parse_json
from megatron_bar.data.paths import files_of
from megatron_bar.data.records import Listed
from megatron_bar.data.sources import Conversation, SourceSample, open_source, source_name
from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.data.toy import CHAT_TEMPLATE
from megatron_bar.launch.starts import start_tokenizer
from megatron_bar.recipe.fields import CHATS, ITEMS, PAIRS, TEXTS
from megatron_bar.recipe.schema import Recipe
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import BarError, VerifierFailed
from megatron_bar.runtime.faults import Faults, require
from megatron_bar.stages.stage import Reading, Stage
from megatron_bar.verifiers.registry import ANY_ANSWER, Scorers, verifier_for

FIRST, SPREAD = 100, 100
_TOY = 20  # of the toy world's records, which are right if one is
# A file of more bytes isn't read through for a sample of it.
_LARGE = 1 << 29
_STAND_IN_TOKENS = 300  # all bytes, and a few words
# How long references are tried on the verifier of a source: one may have to start a process.
_SCORE_SECONDS = 1.0


def check_data(
    recipe: Recipe, stages: Sequence[Stage], faults: Faults, positions: int | None
) -> None:
    """Add what is wrong with the data that `stages` read, for a model of so many `positions`.

    Where the anchor's tokenizer isn't here, or is yet to be trained, one of bytes stands in.
    """
    found = readings(stages, faults)
    if not found:
        return
    language = None
    with faults.of():
        language = _language(recipe, chats=any(reading.form != TEXTS for reading in found))
    for reading in found:
        _check(reading, recipe.seed, language, positions, faults)


def check_tasks(
    tasks: Mapping[str, Sequence[Source]],
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    positions: int,
    seed: int,
) -> None:
    """Raise BarError with all that is wrong with the items that a model of `tokenizer` is asked.

    The model has so many `positions`.
    `template` names a chat template, by default the tokenizer's own.
    """
    found = [
        Reading("evaluate", source, ITEMS, task=task)
        for task, entries in tasks.items()
        for source in entries
    ]
    faults = Faults()
    check_readings(found, tokenizer, template, positions, seed, faults)
    require(faults)


def check_readings(
    found: Sequence[Reading],
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    positions: int,
    seed: int,
    faults: Faults,
) -> None:
    """Add what is wrong with data that are read for a model of this tokenizer and `positions`.

    Raises BarError for a chat template that there isn't. Texts need none.
    """
    chats = any(reading.form != TEXTS for reading in found)
    language = _Language(tokenizer, chat_template(template, tokenizer) if chats else None, True)
    for reading in found:
        _check(reading, seed, language, positions, faults)


def readings(stages: Sequence[Stage], faults: Faults) -> list[Reading]:
    """Readings of `stages`, each source once in each way; adds to `faults` what can't be known."""
    found: dict[tuple, Reading] = {}
    for stage in stages:
        with faults.of(stage.name):
            for reading in stage.readings():
                key = contents(reading.source), reading.form, reading.length
                found.setdefault(key, reading)
    return list(found.values())


def contents(source: Source) -> tuple:
    """Equal for sources of which the same examples are read."""
    return dataclasses.astuple(dataclasses.replace(source, repeat=1, weight=None, name=None))


@dataclass(frozen=True)
class _Language:
    """How records become tokens. Without a template conversations don't."""

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    exact: bool  # False: the tokenizer stands in for another, which makes fewer tokens


def _language(recipe: Recipe, chats: bool) -> _Language:
    """Raises BarError for a tokenizer or a template that can't be read."""
    named = None if recipe.chat_template is None else chat_template(recipe.chat_template, None)
    try:
        tokenizer = start_tokenizer(recipe)
    except BarError:
        if recipe.anchor is not None and (Path(recipe.anchor) / "tokenizer.json").is_file():
            raise  # it is here and broken
    else:
        template = named or (chat_template(None, tokenizer) if chats else None)
        return _Language(tokenizer, template, True)
    # What a recipe with `pretrain` will train has the toy's template by default.
    template = named or (CHAT_TEMPLATE if recipe.anchor is None else None)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = train_tokenizer(["a"], _STAND_IN_TOKENS, Path(scratch), template or "")
    return _Language(tokenizer, template, False)


def _check(
    reading: Reading,
    seed: int,
    language: _Language | None,
    positions: int | None,
    faults: Faults,
) -> None:
    source = reading.source
    absent = not source.toy and not (
        files_of(source.path) if source.path else Path(source.hub or "").exists()
    )
    with faults.of(reading.where, absent):
        drawn = sampled(source, seed, reading.form == TEXTS)
        length = reading.length
        if language is None or not language.exact:
            length = positions = None
        if reading.form == TEXTS:
            _check_texts(drawn, language)
        elif reading.form == CHATS:
            _check_chats(drawn, language, length)
        elif reading.form == PAIRS:
            _check_pairs(drawn, language, length)
        else:
            _check_prompts(drawn, language, length, positions)


def sampled(source: Source, seed: int, texts: bool) -> SourceSample:
    """A sample of what a source contributes. Raises BarError as `open_source` does."""
    if source.toy:
        source = dataclasses.replace(source, count=source.count and min(source.count, _TOY))
        return open_source(source, seed, texts)
    path = Path(source.path or "")
    if path.suffix == ".jsonl" and path.is_file() and path.stat().st_size > _LARGE:
        records = list(_lines_of(path))
        return SourceSample(
            source,
            source_name(source),
            Listed([record for _, record in records], lambda index: records[index][0]),
            range(len(records)),
        )
    drawn = open_source(source, seed, texts)
    chosen, rest = drawn.chosen[:FIRST], drawn.chosen[FIRST:]
    step = max(1, -(-len(rest) // SPREAD))
    return dataclasses.replace(drawn, chosen=[*chosen, *rest[::step]])


def _lines_of(path: Path) -> Iterator[tuple[str, Any]]:
    """Lines at the beginning of a file and at places spread over it, with where they stand."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        for number in range(FIRST):
            yield f"{path}:{number + 1}", _record(file.readline(), f"{path}:{number + 1}")
        start = file.tell()
        for number in range(SPREAD):
            file.seek(start + (size - start) * number // SPREAD)
            if number:
                file.readline()  # the rest of the line that this place is in
            where = f"{path} at byte {file.tell():,}"
            if (line := file.readline()).strip():
                yield where, _record(line, where)


def _record(line: bytes, where: str) -> object:
    """The record, or, as `Records` have it, what is wrong with it."""
    try:
        return parse_json(line.decode())
    except UnicodeDecodeError as error:
        return BarError(f"{where}: not UTF-8: {error.reason}")
    except BarError as error:
        return BarError(f"{where}: {error}")


def _check_texts(drawn: SourceSample, language: _Language | None) -> None:
    texts = list(drawn.texts())
    if language is not None and not any(map(len, encode_texts(language.tokenizer, texts))):
        raise BarError(f"source {drawn.name} holds no tokens to train on")


def _check_chats(drawn: SourceSample, language: _Language | None, length: int | None) -> None:
    conversations = drawn.conversations()
    if language is None or language.template is None:
        for _ in conversations:
            pass
        return
    examples = encode_conversations(
        language.tokenizer, conversations, language.template, BadItems.of(drawn.source)
    )
    # All are read, also after the first that has some: any may be wrong.
    if not sum(np.count_nonzero(example.loss_mask[1:length]) for example in examples):
        raise BarError(
            f"source {drawn.name}: of {len(drawn)} conversations none has a token that "
            f"carries loss among its first {length}; raise sequence_length, or look "
            "with megatron-bar data show"
        )


def _check_pairs(drawn: SourceSample, language: _Language | None, length: int | None) -> None:
    pairs = drawn.preferences()
    if language is None or language.template is None:
        for _ in pairs:
            pass
        return
    examples = list(
        encode_preferences(
            language.tokenizer, pairs, language.template, BadItems.of(drawn.source), Counter()
        )
    )
    learned = [any(example.loss_mask[1:length]) for example in examples]
    if not any(chosen and rejected for chosen, rejected in zip(learned[::2], learned[1::2])):
        raise BarError(
            f"source {drawn.name}: of {len(drawn)} preference pairs none has something "
            f"to learn from in both answers within their first {length} tokens; raise "
            "sequence_length, or look with megatron-bar data show"
        )


def _check_prompts(
    drawn: SourceSample, language: _Language | None, longest: int | None, positions: int | None
) -> None:
    bad = BadItems.of(drawn.source)
    items = list(drawn.conversations(bad=bad))
    if language is not None and language.template is not None:
        lengths = []
        for item in items:
            with bad.caught(item.number, item.where):
                length = len(prompt_ids(language.tokenizer, item.messages, language.template))
                lengths.append(length)
                if positions is not None and length <= (longest or length):
                    check_prompt_length(length, positions)
        if longest is not None and lengths and min(lengths) > longest:
            raise BarError(
                f"source {drawn.name}: all of {len(items)} prompts are longer than "
                f"prompt_length {longest}; raise it"
            )
    try:
        verifier_for(drawn.source)
    except BarError:
        return  # reported with what else the recipe says of its sources
    end, scorers = time.monotonic() + _SCORE_SECONDS, Scorers(drawn.source)
    for item in items:
        with bad.caught(item.number, item.where):
            score = scorers.scorer(item)
            if time.monotonic() < end:
                _try(score, item, bad)


def _try(score: Callable[[str], float], item: Conversation, bad: BadItems) -> None:
    """Score any answer. Before a run, an item whose verifier fails on that is a bad one."""
    try:
        score(ANY_ANSWER)
    except VerifierFailed as error:
        bad.add(item.number, item.where, error)
