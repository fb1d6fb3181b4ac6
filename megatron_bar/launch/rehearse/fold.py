"""A layout on the few ranks there are: each kind of parallelism stays, as narrow as it goes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from megatron_bar.runtime.layout import Layout

_WIDTH = 2
_KINDS = ("tensor", "expert", "pipeline", "context", "data")  # the dearest last


def folded(layout: Layout, ranks: int) -> Layout:
    """`layout` on at most `ranks` processes, or as it is where it needs no more.

    What was spread stays spread over two ranks, experts over the smallest number that divides
    `layout.expert`. Where the ranks don't suffice for all kinds, tensor parallelism stays first,
    then expert, pipeline, context and data parallelism.
    """
    if layout.processes <= ranks:
        return layout
    found = Layout()
    for kind in _KINDS:
        wider = (each for each in _wider(found, kind, layout) if each.processes <= ranks)
        found = next(wider, found)
    return found


def lost_kinds(layout: Layout, fold: Layout) -> list[str]:
    """The kinds of parallelism that `layout` has and its `fold` hasn't."""
    return [kind for kind in _KINDS if getattr(layout, kind) > 1 and getattr(fold, kind) == 1]


def _wider(found: Layout, kind: str, layout: Layout) -> Iterator[Layout]:
    """`found` with one more kind of what `layout` has, the most like it first."""
    if getattr(layout, kind) == 1:
        return
    if kind == "data":
        if found.data == 1:
            yield dataclasses.replace(found, processes=_WIDTH * found.processes)
    elif kind != "expert":
        yield _smallest(dataclasses.replace(found, **{kind: _WIDTH}))
    else:
        wider = dataclasses.replace(found, expert=_smallest_factor(layout.expert))
        if layout.resolved_expert_tensor > 1:
            yield _smallest(wider)
        yield _smallest(dataclasses.replace(wider, expert_tensor=1))


def _smallest(layout: Layout) -> Layout:
    """The same sizes on as few processes as hold them."""
    dense = layout.tensor * layout.context * layout.pipeline
    experts = layout.expert * layout.resolved_expert_tensor * layout.pipeline
    return dataclasses.replace(layout, processes=math.lcm(dense, experts))


def _smallest_factor(number: int) -> int:
    return next(factor for factor in range(2, number + 1) if number % factor == 0)
