"""A page from a template: one HTML file, without scripts or network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from megatron_bar.analysis import formats
from megatron_bar.analysis.suites import in_percent, of_all
from megatron_bar.runtime.files import write_text

_TEMPLATES = Path(__file__).parent / "templates"


def write_page(target: Path, template: str, **content: Any) -> None:
    """Write `template`, a file of `templates/`, filled with `content`, to `target` in one step."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name: getattr(formats, name)
        for name in ("cell", "duration", "layout", "number", "percent", "small_percent")
    } | {"of_all": of_all, "in_percent": in_percent}
    write_text(target, environment.get_template(template).render(**content))
