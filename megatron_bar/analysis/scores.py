"""Scores of a run's models: the base, every branch, the merged and the routed model.

`last` is the model that the run is for (`runs.last_model`), which is compared with the branches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from megatron_bar.analysis.intervals import Interval, score_interval
from megatron_bar.analysis.paired import Paired, paired_test
from megatron_bar.analysis.runs import stage_names
from megatron_bar.recipe.names import ALL, ANCHOR, MERGED, ROUTED, WITHOUT, parts_of_model
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json

MISSING = "\u2013"  # an en dash


@dataclass(frozen=True)
class Cell:
    """One model's score on one task, with the 95 % interval that `count` items allow."""

    count: int
    interval: Interval
    own: bool  # a branch on the domain it was made for
    cut: float | None  # share of the answers that were cut at max_new_tokens

    @property
    def score(self) -> float:
        return self.interval.mean


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
    gained: dict[str, Paired]  # by domain, the last model's score less the branch's
    last: str  # the last model's label

    def items(self, index: int) -> str:
        """The number of items of task `index`; two numbers if models were asked different ones."""
        counts = [cell.count for row in self.rows if (cell := row.cells[index]) is not None]
        return MISSING.join(str(count) for count in dict.fromkeys((min(counts), max(counts))))


def load_results(run: Path) -> dict[str, dict[str, Any]]:
    """results.json of every evaluated model: anchor, branches, whole models, in that order.

    Raises BarError if no model has been evaluated.
    """
    results = evaluated(run)
    if not results:
        raise BarError(
            f"{run} holds no evaluate/MODEL/results.json; let its evaluate stages run first"
        )
    return results


def evaluated(run: Path) -> dict[str, dict[str, Any]]:
    """The same, and {} where no model has been evaluated."""
    names = [n for n in stage_names(run, "results.json") if n.startswith("evaluate/")]
    return {
        name.removeprefix("evaluate/"): read_json(Path(run) / name / "results.json")
        for name in names
    }


def branches(results: dict[str, dict[str, Any]]) -> list[str]:
    """The domains whose branch was evaluated."""
    return [
        model
        for model in results
        if model not in (ANCHOR, ALL, MERGED, ROUTED)
        and not model.startswith(WITHOUT)
        and not parts_of_model(model)[1]
    ]


def kept_share(results: dict[str, dict[str, Any]], last: str = ROUTED) -> dict[str, float]:
    """Score of the last model over that of the branch, by domain; above 1 it gained.

    A domain is left out where one of the two is missing or the branch scores 0.
    """
    after = results.get(last, {}).get("tasks", {})
    shares = {}
    for domain in branches(results):
        alone = results[domain]["tasks"].get(domain, {}).get("score")
        if alone and domain in after:
            shares[domain] = after[domain]["score"] / alone
    return shares


def gained(results: dict[str, dict[str, Any]], last: str = ROUTED) -> dict[str, Paired]:
    """Score of the last model less that of the branch, by domain, on the items both were asked.

    A domain is left out where the scores of the items aren't known.
    """
    after = results.get(last, {}).get("tasks", {})
    found = {
        domain: paired_test(after[domain], results[domain]["tasks"][domain])
        for domain in branches(results)
        if domain in after and domain in results[domain]["tasks"]
    }
    return {domain: paired for domain, paired in found.items() if paired}


def compare(results: dict[str, dict[str, Any]], last: str = ROUTED) -> Scores:
    """The table of all models and tasks, with intervals."""
    asked = list(dict.fromkeys(task for result in results.values() for task in result["tasks"]))
    domains = branches(results)
    tasks = [d for d in domains if d in asked] + [task for task in asked if task not in domains]
    rows = tuple(
        Row(model, model_label(model), tuple(_cell(model, task, result) for task in tasks))
        for model, result in results.items()
    )
    return Scores(
        tuple(tasks), rows, kept_share(results, last), gained(results, last), model_label(last)
    )


def model_label(model: str) -> str:
    """The name of an evaluated model in tables."""
    if model.startswith(WITHOUT):
        return f"{ROUTED} without {model.removeprefix(WITHOUT)}"
    trained, after = parts_of_model(model)
    labels = {ANCHOR: "base (anchor)", ALL: "all domains", MERGED: MERGED, ROUTED: ROUTED}
    label = labels.get(trained, f"branch {trained}")
    return f"{label} after {after}" if after else label


def _cell(model: str, task: str, result: dict[str, Any]) -> Cell | None:
    found = result["tasks"].get(task)
    if found is None:
        return None
    return Cell(
        found["count"],
        score_interval(found),
        own=parts_of_model(model)[0] == task,
        cut=found.get("cut"),
    )


def score_lines(results: dict[str, dict[str, Any]], last: str = ROUTED) -> list[str]:
    """The last model's scores beside the base's and the branches', in Markdown."""
    scores = compare(results, last)
    rows = {row.model: row.cells for row in scores.rows}
    lines = [
        "Mean scores on held-out items, from 0 to 1, with their 95 % intervals.",
        "",
        "| task | items | this model | the base | the domain's own model |",
        "|---|---|---|---|---|",
    ]
    for index, task in enumerate(scores.tasks):
        cells = [rows[model][index] if model in rows else None for model in (last, ANCHOR, task)]
        lines.append(
            f"| {task} | {scores.items(index)} | {' | '.join(map(_with_interval, cells))} |"
        )
    return lines


def _with_interval(cell: Cell | None) -> str:
    if cell is None:
        return MISSING
    return f"{cell.score:.2f} ({cell.interval.low:.2f} to {cell.interval.high:.2f})"


def score_table(results: dict[str, dict[str, Any]], last: str = ROUTED) -> Table:
    """All scores for the terminal, each over its 95 % interval; a branch's own domain is bold."""
    scores = compare(results, last)
    table = Table(title="Scores on held-out items")
    table.add_column("model")
    for index, task in enumerate(scores.tasks):
        table.add_column(Text(f"{task}\n{scores.items(index)} items"), justify="right")
    for row in scores.rows:
        cells = [
            Text(
                f"{cell.score:.2f}\n{cell.interval.low:.2f}\u2013{cell.interval.high:.2f}",
                style="bold" if cell.own else "",
            )
            if cell
            else Text(MISSING)
            for cell in row.cells
        ]
        table.add_row(Text(row.label), *cells)
    if scores.kept:
        table.add_section()
        table.add_row(
            f"{scores.last} / branch",
            *(
                f"{scores.kept[task]:.0%}" if task in scores.kept else MISSING
                for task in scores.tasks
            ),
        )
    if scores.gained:
        table.add_row(
            f"{scores.last} \u2212 branch",
            *(
                f"{found.difference.mean:+.2f}\n{found.verdict}"
                if (found := scores.gained.get(task))
                else MISSING
                for task in scores.tasks
            ),
        )
    return table


def task_table(result: dict[str, Any]) -> Table:
    """One model's scores for the terminal, each with its interval and what it comes from."""
    table = Table(title=f"Scores of {result['model']}")
    for column in ("task", "items", "score", "95% interval", "method", "answers cut"):
        table.add_column(column, justify="left" if column in ("task", "method") else "right")
    for task, found in result["tasks"].items():
        interval = score_interval(found)
        table.add_row(
            Text(task),
            str(found["count"]),
            f"{interval.mean:.3f}",
            f"{interval.low:.3f}\u2013{interval.high:.3f}",
            interval.method,
            f"{found['cut']:.0%}",
        )
    return table
