"""Numbers as people read them."""

from __future__ import annotations

from typing import Any


def cell(value: Any) -> str:
    """A cell of an added table."""
    if value is None:
        return "\u2013"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def layout(layout: dict[str, Any]) -> str:
    """A stage's layout, by what is larger than 1."""
    sizes = [
        f"{size} {name}" for name, size in layout.items() if isinstance(size, int) and size > 1
    ]
    return ", ".join(sizes) or "1 process"


def small_percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.095 else f"{share:.1%}"


def percent(share: float) -> str:
    return f"{share:.0%}"


def number(count: int) -> str:
    """1234567 as 1.23 M: three digits are enough to compare."""
    for size, unit in ((10**12, " T"), (10**9, " B"), (10**6, " M"), (10**3, " k")):
        if count >= 0.9995 * size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def duration(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
