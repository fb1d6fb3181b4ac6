"""Shares of the sources of a mixture: their natural size, or what the recipe gives.

In mid-training a share is one of the tokens, in SFT one of the conversations. A mixture with
weights is as large as one without: weights shift what it is made of.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from megatron_bar.data.sources import choose, source_name
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import BarError


def check_mixture(sources: Sequence[Source]) -> tuple[str, ...]:
    """The sources' names.

    Raises BarError if two have one name, or for weights that can't be shares.
    """
    names: list[str] = []
    for source in sources:
        name = source_name(source)
        if name in names:
            raise BarError(f"two data sources are called {name!r}; give one of them a name")
        names.append(name)
        if source.weight is None:
            continue
        if source.weight <= 0:
            raise BarError(f"source {name}: weight is {source.weight}; give a share above 0")
        if source.repeat > 1:
            raise BarError(f"source {name}: give either weight or repeat")
    weighted = [name for name, source in zip(names, sources) if source.weight is not None]
    if weighted and len(weighted) < len(names):
        other = next(name for name in names if name not in weighted)
        raise BarError(f"source {weighted[0]} has a weight and {other} has none; give all or none")
    return tuple(names)


def natural_size(sources: Sequence[Source], sizes: Sequence[int]) -> int:
    """The size of the mixture, in the units of `sizes`."""
    return sum(size * source.repeat for source, size in zip(sources, sizes))


def shares(sources: Sequence[Source], sizes: Sequence[int]) -> list[float]:
    """The share of each source in the mixture; they sum to 1."""
    parts = [
        size * source.repeat if source.weight is None else source.weight
        for source, size in zip(sources, sizes)
    ]
    return [part / sum(parts) for part in parts]


def picks(sources: Sequence[Source], sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """The documents of each source that an epoch holds, in the source's order.

    One whose share is larger than itself goes in whole, as often as it fits, and then in part.
    """
    total = natural_size(sources, sizes)
    found = []
    for source, size, share in zip(sources, sizes, shares(sources, sizes)):
        count = max(1, round(share * total))
        times, rest = divmod(count, size)
        part = choose(size, rest, f"weight/{source_name(source)}/{seed}")
        found.append(np.concatenate([np.tile(np.arange(size), times), np.array(part, np.int64)]))
    return found


def stratified(sizes: Mapping[str, int], fraction: float, seed: int) -> dict[str, np.ndarray]:
    """The same share of every source, in its order: `fraction` of it, at least one document.

    Raises BarError for a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise BarError(f"fraction is {fraction}; give a share above 0, up to 1")
    found = {}
    for name, size in sizes.items():
        count = max(1, int(fraction * size + 0.5))
        found[name] = np.array(choose(size, count, f"stratified/{name}/{seed}"))
    return found


def distinct_sources(by_domain: Mapping[str, Sequence[Source]]) -> list[Source]:
    """Every SFT source of every domain once; general data that several mix in are one source.

    Sources are distinguished by what they hold. Where domains take different counts the largest is
    sampled, and how often or how heavily a domain mixes a source doesn't matter here.
    """
    found: dict[str, Source] = {}
    for domain_sources in by_domain.values():
        for source in domain_sources:
            name = source_name(source)
            known = found.get(name)
            if known is not None and _place(known) != _place(source):
                raise BarError(f"two data sources are called {name!r}; give one of them a name")
            if known is None or _size(source) > _size(known):
                found[name] = dataclasses.replace(source, repeat=1, weight=None)
    return list(found.values())


def _size(source: Source) -> float:
    return math.inf if source.count is None else source.count


def _place(source: Source) -> tuple:
    return source.path, source.hub, source.toy, source.split
