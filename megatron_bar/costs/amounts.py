"""Amounts of data, from files alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from megatron_bar.data.paths import files_of
from megatron_bar.data.sources import open_source
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.known import known_sum


def items_of(sources: Iterable[Source]) -> int | None:
    """The number of items; None where a file isn't here and its source has no count."""
    return known_sum(map(_records, sources))


def tokens_in_files(sources: Sequence[Source], bytes_per_token: float) -> float | None:
    """Tokens of an epoch, from the bytes of the sources' files; None where one isn't here."""
    total = 0.0
    for source in sources:
        size: float | None = None if source.path is None else _bytes(source.path)
        if size is None:
            return None
        if source.count is not None:
            records = _records(dataclasses.replace(source, count=None))
            if records is None:
                return None
            size *= min(1.0, source.count / records)
        total += source.repeat * size / bytes_per_token
    return total


def _records(source: Source) -> int | None:
    """How many a source holds, or its count."""
    if source.count is not None:
        return source.count
    try:
        return len(open_source(source, seed=0, texts=False))
    except BarError:
        return None


def _bytes(path: str) -> int | None:
    """Of the files that a source's `path` names; None where there are none."""
    files = files_of(path)
    return sum(file.stat().st_size for file in files) if files else None
