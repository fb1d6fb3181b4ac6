"""Machines' figures, and what they say: which ranks are slower than most."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields

HEALTH_CHECK = "MEGATRON_BAR_HEALTH_CHECK"
OFF, WARN, REFUSE = MODES = ("off", "warn", "refuse")
# How many times slower than the median is too slow. Disks differ more without being ill.
_TOO_SLOW = {"products": 1.3, "exchange": 1.3, "clock": 1.3, "writing": 3.0}
_UNITS = {"products": "TFLOP/s", "exchange": "GB/s", "clock": "MHz", "writing": "GB/s"}


@dataclass(frozen=True)
class Measured:
    """The figures of one rank, more being better; None where there is nothing to measure."""

    host: str
    products: float | None = None
    exchange: float | None = None
    clock: float | None = None
    writing: float | None = None


def slow_ranks(everyones: Sequence[Measured]) -> dict[int, list[str]]:
    """The ranks that are too slow, with a line for each figure that says so."""
    found: dict[int, list[str]] = {}
    for name, factor in _TOO_SLOW.items():
        figures = {
            rank: figure
            for rank, of in enumerate(everyones)
            if (figure := getattr(of, name)) is not None
        }
        median = statistics.median(figures.values()) if figures else 0.0
        for rank, figure in figures.items():
            if figure * factor < median:
                found.setdefault(rank, []).append(
                    f"rank {rank} on {everyones[rank].host} is slow: {name} {figure:.3g} "
                    f"{_UNITS[name]}, and {median:.3g} is the median"
                )
    return found


def summary(everyones: Sequence[Measured]) -> str:
    parts = [f"{len(everyones)} ranks"]
    for name in (field.name for field in fields(Measured) if field.name != "host"):
        figures = [figure for of in everyones if (figure := getattr(of, name)) is not None]
        if figures:
            parts.append(f"{name} {min(figures):.3g} to {max(figures):.3g} {_UNITS[name]}")
    return ", ".join(parts)
