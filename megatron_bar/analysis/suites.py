"""Scores of lm-eval's suites, for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from megatron_bar.runtime.files import read_json


def read_suites(run: Path) -> list[dict[str, Any]]:
    """scores.json of each suite that was run on a run's exported model."""
    return [read_json(path) for path in sorted(Path(run).glob("suites/*/scores.json"))]


def suite_table(suites: Sequence[dict[str, Any]]) -> Table:
    """Categories and their benchmarks, in per cent; a category that lacks some says so."""
    table = Table(title="Benchmarks, through lm-eval")
    for column in ("category", "benchmark", "score", "items"):
        table.add_column(column, justify="right" if column in ("score", "items") else "left")
    for scores in suites:
        for name, category in scores["categories"].items():
            table.add_row(
                Text(name, "bold"),
                "",
                Text(in_percent(category["score"]), "bold"),
                of_all(category),
            )
            for benchmark, score in category["benchmarks"].items():
                table.add_row("", Text(benchmark), in_percent(score["score"]), str(score["items"]))
    return table


def in_percent(score: float | None) -> str:
    return "\u2013" if score is None else f"{100 * score:.1f}"


def of_all(category: dict[str, Any]) -> str:
    """The measured part of a category, where it isn't all of it."""
    measured, missing = len(category["benchmarks"]), len(category["missing"])
    return "" if not missing else f"{measured} of {measured + missing} benchmarks"
