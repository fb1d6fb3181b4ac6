"""Sections that other commands add to a run's report.

A command that has more to show of a run writes RUN/sections/NAME.json:

    {"title": "Upgrade",
     "after": "scores",                  a section's id; at the end by default
     "words": ["one line", "..."],
     "tables": [{"title": "...", "columns": ["domain", "before"], "rows": [["math", 0.84]],
                 "texts": ["..."]}],   columns that are read, not compared: set left, and broken
     "pictures": ["<svg>...</svg>"],     as `panel.svg_panel` draws them
     "page": "tokens.html"}              a file of the run to link, relative to it

All keys but the title may be left out. Numbers are set with two decimals, or as integers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json

FOLDER = "sections"


@dataclass(frozen=True)
class Section:
    """One section; `pictures` are trusted, everything else is escaped."""

    id: str
    title: str
    after: str = ""
    words: list[str] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    pictures: Markup = field(default_factory=Markup)
    page: str = ""


def read_sections(run: Path) -> list[Section]:
    """All sections of a run, by file name. Raises BarError for a file that isn't one."""
    sections = []
    for path in sorted((Path(run) / FOLDER).glob("*.json")):
        content = read_json(path)
        try:
            pictures = Markup("".join(content.pop("pictures", ())))
            section = Section(path.stem, pictures=pictures, **content)
            for table in section.tables:
                table["columns"], table["rows"]
        except (AttributeError, KeyError, TypeError) as error:
            raise BarError(f"{path} is no section of a report: {error}") from None
        sections.append(section)
    return sections
