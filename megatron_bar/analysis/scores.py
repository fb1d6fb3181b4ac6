"""How the models of a run score: the base, every branch, the merged and the routed model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from megatron_bar.analysis.runs import ANCHOR, MERGED, ROUTED, stage_names
from megatron_bar.recipe.graph import WITHOUT
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json

Z_95 = 1.959963984540054  # two-sided 95 % of the normal distribution
MISSING = "\u2013"  # an en dash
KEPT = "routed / branch"


@dataclass(frozen=True)
class Cell:
    """One model's score on one task, with the 95 % interval that `count` items allow."""

    score: float
    count: int
    low: float
    high: float
    own: bool  # a branch on the domain it was made for


@dataclass(frozen=True)
class Row:
    """One model; a cell is None where it wasn't asked that task."""

    model: str
    label: str
    cells: tuple[Cell | None, ...]  # in the order of the tasks


@dataclass(frozen=True)
class Scores:
    """All scores of a run as plain data."""

    tasks: tuple[str, ...]  # domains in the order of the recipe, then what belongs to no domain
    rows: tuple[Row, ...]
    kept: dict[str, float]  # see kept_share

    def items(self, index: int) -> str:
        """How many items task `index` has; two numbers if models were asked different ones."""
        counts = [row.cells[index].count for row in self.rows if row.cells[index]]
        return MISSING.join(str(count) for count in dict.fromkeys((min(counts), max(counts))))


def load_results(run: Path) -> dict[str, dict[str, Any]]:
    """results.json of every evaluated model: anchor, branches, merged, routed, in that order.

    Raises BarError if no model has been evaluated.
    """
    run = Path(run)
    names = [n for n in stage_names(run, "results.json") if n.startswith("evaluate/")]
    if not names:
        raise BarError(
            f"{run} holds no evaluate/MODEL/results.json; let its evaluate stages run first"
        )
    return {name.removeprefix("evaluate/"): read_json(run / name / "results.json")
            for name in names}


def wilson_interval(score: float, count: int) -> tuple[float, float]:
    """Where the true rate lies, with 95 % confidence, if `score` is the mean over `count` items.

    Wilson's interval stays within 0..1 and has a width at scores of 0 and 1, where the textbook
    one has none. Partial credit only makes it too wide, never too narrow.
    """
    if count < 1:
        return 0.0, 1.0
    shrink = 1 + Z_95**2 / count
    centre = (score + Z_95**2 / (2 * count)) / shrink
    half = Z_95 * math.sqrt(score * (1 - score) / count + (Z_95 / (2 * count)) ** 2) / shrink
    return max(0.0, min(centre - half, score)), min(1.0, max(centre + half, score))


def branches(results: dict[str, dict[str, Any]]) -> list[str]:
    """The domains whose branch was evaluated."""
    return [model for model in results
            if model not in (ANCHOR, MERGED, ROUTED) and not model.startswith(WITHOUT)]


def kept_share(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Score of the routed model over that of the branch, by domain; above 1 it gained.

    A domain is left out where one of the two is missing or the branch scores 0.
    """
    after = results.get(ROUTED, {}).get("tasks", {})
    shares = {}
    for domain in branches(results):
        alone = results[domain]["tasks"].get(domain, {}).get("score")
        if alone and domain in after:
            shares[domain] = after[domain]["score"] / alone
    return shares


def compare(results: dict[str, dict[str, Any]]) -> Scores:
    """The table of all models and tasks, with intervals."""
    asked = list(dict.fromkeys(task for result in results.values() for task in result["tasks"]))
    domains = branches(results)
    tasks = [d for d in domains if d in asked] + [task for task in asked if task not in domains]
    rows = tuple(
        Row(model, model_label(model), tuple(_cell(model, task, result) for task in tasks))
        for model, result in results.items()
    )
    return Scores(tuple(tasks), rows, kept_share(results))


def model_label(model: str) -> str:
    """What people call an evaluated model."""
    if model.startswith(WITHOUT):
        return f"{ROUTED} without {model.removeprefix(WITHOUT)}"
    return {ANCHOR: "base (anchor)", MERGED: MERGED, ROUTED: ROUTED}.get(model, f"branch {model}")


def _cell(model: str, task: str, result: dict[str, Any]) -> Cell | None:
    found = result["tasks"].get(task)
    if found is None:
        return None
    low, high = wilson_interval(found["score"], found["count"])
    return Cell(found["score"], found["count"], low, high, own=model == task)


def score_table(results: dict[str, dict[str, Any]]) -> Table:
    """All scores for the terminal; a branch's own domain is bold."""
    scores = compare(results)
    table = Table(title="Scores on held-out items")
    table.add_column("model")
    for index, task in enumerate(scores.tasks):
        table.add_column(Text(f"{task}\n{scores.items(index)} items"), justify="right")
    for row in scores.rows:
        cells = [Text(f"{cell.score:.2f}", style="bold" if cell.own else "") if cell
                 else Text(MISSING) for cell in row.cells]
        table.add_row(Text(row.label), *cells)
    if scores.kept:
        table.add_section()
        table.add_row(KEPT, *(f"{scores.kept[task]:.0%}" if task in scores.kept else MISSING
                              for task in scores.tasks))
    return table
