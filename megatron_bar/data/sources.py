"""Sources of a recipe: the texts or conversations they contribute, drawn by the seed.

What is drawn from a source depends on the source and the seed alone, never on the other sources,
so that replacing one leaves the others' examples as they were.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from megatron_bar.data import forms, toy
from megatron_bar.data.bad_items import SKIP, STOP, BadItems, describe_left_out
from megatron_bar.data.files import read_path
from megatron_bar.data.forms import Form, preferences
from megatron_bar.data.messages import Message, check_text
from megatron_bar.data.paths import path_name
from megatron_bar.data.records import Listed, Record, Records
from megatron_bar.data.tables import Dataset
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.console import say
from megatron_bar.runtime.errors import BarError

# With on_bad_item: skip the first records may be among the bad ones.
_RECORDS_TRIED = 100
Item = TypeVar("Item")


@dataclass(frozen=True)
class Conversation:
    """Messages, the record they come from (scoring needs it) and where that stands."""

    messages: list[Message]
    source: str
    item: Record
    where: str = ""
    number: int = field(default=0, compare=False)  # among those drawn from the source


@dataclass(frozen=True)
class Preference:
    """Two conversations that differ in their last reply, and where their record stands."""

    chosen: list[Message]
    rejected: list[Message]
    where: str
    number: int  # among those drawn from the source


@dataclass(frozen=True)
class SourceSample:
    """The records that a source contributes once, in its order: all, or `count` of them.

    `repeat` and `weight` are for the mixture; here every record counts once. Where a method takes
    `bad`, it lists there what `on_bad_item: skip` leaves out.
    """

    source: Source
    name: str
    records: Records
    chosen: Sequence[int]

    def __len__(self) -> int:
        return len(self.chosen)

    def texts(
        self, start: int = 0, stop: int | None = None, bad: BadItems | None = None
    ) -> Iterator[str]:
        """The texts from `start` to `stop`.

        Raises BarError, with its place, for what isn't one, where that isn't to be skipped.
        """
        column, bad = self.source.text_column, bad or BadItems.of(self.source)
        for number, where, record in self._records(start, stop, bad):
            with bad.caught(number, where):
                text = _column(record, column)
                check_text(text, f"column {column!r}")
                yield text

    def conversations(
        self, start: int = 0, stop: int | None = None, bad: BadItems | None = None
    ) -> Iterator[Conversation]:
        """The conversations from `start` to `stop`.

        They need not end with a reply: held-out items are prompts with an answer in their record.

        Raises BarError, with its place, for what isn't a conversation, where that isn't to be
        skipped.
        """
        form, bad = self.form, bad or BadItems.of(self.source)
        for number, where, record in self._records(start, stop, bad):
            with bad.caught(number, where):
                messages = forms.read(form, record, self._messages_column)
                yield Conversation(messages, self.name, record, where, number)

    def preferences(
        self, start: int = 0, stop: int | None = None, bad: BadItems | None = None
    ) -> Iterator[Preference]:
        """The preference pairs from `start` to `stop`.

        Raises BarError, with its place, for what isn't one, where that isn't to be skipped.
        """
        bad = bad or BadItems.of(self.source)
        for number, where, record in self._records(start, stop, bad):
            with bad.caught(number, where):
                yield Preference(*preferences.read_pair(record), where, number)

    @cached_property
    def form(self) -> Form:
        """The form of the records: as the recipe says, else as the first one is.

        Raises BarError if they are of no form that is known.
        """
        if self.source.format is not None:
            return forms.FORMS[self.source.format]
        bad = BadItems.of(self.source)
        for number, where, record in self._records(0, _RECORDS_TRIED, bad):
            with bad.caught(number, where):
                return forms.form_of(record, self._messages_column)
        raise BarError(describe_left_out(self.name, list(bad.listed.values())))

    @property
    def identity(self) -> Any:
        """A JSON value that changes when what is drawn does."""
        drawn = None if isinstance(self.chosen, range) else list(self.chosen)
        columns = [self.source.text_column, self.source.messages_column, self.source.format]
        return [self.records.identity, drawn, columns]

    @property
    def _messages_column(self) -> str | None:
        """The column that the recipe names; None where it is the usual one."""
        column = self.source.messages_column
        return None if self.source.toy or column == Source.messages_column else column

    def _records(
        self, start: int, stop: int | None, bad: BadItems
    ) -> Iterator[tuple[int, str, Record]]:
        read = self.records.read(self.chosen[start:stop])
        for number, (where, record) in enumerate(read, start):
            if isinstance(record, BarError):
                bad.add(number, where, record)
            else:
                yield number, where, record


def source_name(source: Source) -> str:
    """The name of a source in logs: its own, or that of its domain, file or dataset."""
    kind, value = _kind(source)
    if source.name:
        return source.name
    return path_name(value) if kind == "path" else Path(value).name


def open_source(source: Source, seed: int, texts: bool) -> SourceSample:
    """The items that `source` contributes, read only when they are asked for.

    Raises BarError for a source that is missing, broken or too small for `count`.
    """
    kind, value = _kind(source)
    name = source_name(source)
    for key, known in (("format", forms.FORMS), ("on_bad_item", (STOP, SKIP))):
        given = getattr(source, key)
        if given is not None and given not in known:
            raise BarError(
                f"source {name}: {key} {given!r} is unknown; there are {', '.join(known)}"
            )
    for key in ("count", "repeat"):
        number = getattr(source, key)
        if number is not None and number < 1:
            raise BarError(f"source {name}: {key} is {number}; give at least 1")
    if kind == "toy":
        records = _read_toy(source, seed, texts)
    elif kind == "hub":
        records = Dataset(value, source.split)
    else:
        records = read_path(value, source.text_column, texts)
    size = len(records)
    if size == 0:
        raise BarError(f"source {name} is empty")
    if source.count is None:
        return SourceSample(source, name, records, range(size))
    if source.count > size:
        raise BarError(f"source {name}: count is {source.count}, but it holds {size} examples")
    return SourceSample(source, name, records, choose(size, source.count, f"source/{seed}"))


def load_conversations(
    source: Source, seed: int, bad: BadItems | None = None
) -> list[Conversation]:
    """All conversations that a source contributes, `repeat` times. Raises as `SourceSample` does.

    Those that `on_bad_item: skip` leaves out are listed in `bad`, or said.
    """
    drawn = open_source(source, seed, texts=False)
    return _all(drawn, drawn.conversations, bad) * source.repeat


def load_texts(source: Source, seed: int) -> list[str]:
    """All texts that a source contributes, `repeat` times. Raises as `SourceSample` does."""
    drawn = open_source(source, seed, texts=True)
    return _all(drawn, drawn.texts, None) * source.repeat


def _all(
    drawn: SourceSample, read: Callable[..., Iterator[Item]], bad: BadItems | None
) -> list[Item]:
    listed = bad or BadItems.of(drawn.source)
    found = list(read(bad=listed))
    left_out = list(listed.listed.values())
    if not found:
        raise BarError(describe_left_out(drawn.name, left_out))
    if left_out and bad is None:
        say(describe_left_out(drawn.name, left_out))
    return found


def choose(size: int, count: int, seed: str) -> list[int]:
    """`count` of `size` indices, in order. A text seeds the same draw on every machine."""
    return sorted(random.Random(seed).sample(range(size), count))


def _kind(source: Source) -> tuple[str, str]:
    given = [(kind, getattr(source, kind)) for kind in ("path", "hub", "toy")]
    given = [(kind, value) for kind, value in given if value]
    if len(given) != 1:
        names = " and ".join(kind for kind, _ in given) or "none"
        raise BarError(f"a data source needs one of path, hub and toy; {names} given")
    return given[0]


def _column(record: Any, column: str) -> Any:
    if not isinstance(record, dict):
        raise BarError(f"a record is {type(record).__name__}, not an object with columns")
    if column not in record:
        raise BarError(f"column {column!r} is missing; there are {', '.join(record)}")
    return record[column]


def _read_toy(source: Source, seed: int, texts: bool) -> Records:
    if source.count is None:
        raise BarError(f"the toy source {source.toy} is endless; say how many with count")
    assert source.toy is not None
    arguments = (source.toy, source.split, source.count, seed)
    try:
        if texts:
            records = [{source.text_column: text} for text in toy.texts(*arguments)]
        else:
            records = toy.conversations(*arguments)
    except KeyError:
        domains = ", ".join(toy.ALL_DOMAINS)
        raise BarError(f"the toy world has no domain {source.toy!r}; it has {domains}") from None
    except ValueError as error:
        raise BarError(f"toy source {source.toy}: {error}") from None
    return Listed(records, lambda index: f"toy {source.toy} {index + 1}")
