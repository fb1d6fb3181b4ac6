"""Compared systems in tables: for the terminal, and as a section of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from megatron_bar.analysis.sections import Section
from megatron_bar.comparison.compare import Numbers, System, differences
from megatron_bar.recipe.names import GENERAL

FORGOTTEN = (GENERAL, "safety")  # tasks whose scores before and after tell what was lost
_WORDS = [
    "Overall is the mean over the tasks; ± is the standard deviation over seeds, and in "
    "parentheses stands the 95% interval over items.",
    "Differences are on the same items, each item's score the mean over the seeds that both have: "
    "McNemar's exact test where items are right or wrong, else items resampled in pairs.",
    "Process seconds add up the processes of a stage: two for a minute count 120.",
]


def comparison_tables(systems: Sequence[System]) -> list[Table]:
    """Tables for the terminal: scores and costs, the domains' own models, and the training."""
    tables = []
    for content in _tables(systems):
        table = Table(title=content["title"], title_justify="left")
        for name in content["columns"]:
            text = name in ("system", *content.get("texts", ()))
            table.add_column(name, justify="left" if text else "right")
        for row in content["rows"]:
            table.add_row(*row)
        tables.append(table)
    return tables


def comparison_section(systems: Sequence[System]) -> Section:
    """The same tables for a report."""
    return Section("systems", "Systems", after="scores", words=_WORDS, tables=_tables(systems))


def _tables(systems: Sequence[System]) -> list[dict[str, Any]]:
    tasks = list(dict.fromkeys(task for system in systems for task in system.after))
    tables = [_scores(systems, tasks), *_differences(systems, tasks), _spent(systems)]
    if any(system.branches for system in systems):
        tables.insert(-1, _own_models(systems, tasks))
    return tables


def _scores(systems: Sequence[System], tasks: Sequence[str]) -> dict[str, Any]:
    forgotten = [task for task in FORGOTTEN if task in tasks]
    return {
        "title": "The last model's scores on held-out items, mean over seeds",
        "columns": [
            "system",
            "seeds",
            *tasks,
            "overall",
            *(f"{task}\nbefore > after" for task in forgotten),
            "tokens",
            "process\nseconds",
        ],
        "rows": [
            [
                system.label,
                " ".join(map(str, system.seeds)),
                *(_shown(system.after.get(task)) for task in tasks),
                _shown(system.overall),
                *(_before_after(system, task) for task in forgotten),
                f"{system.tokens.mean:,.0f}",
                f"{system.seconds.mean:,.0f}",
            ]
            for system in systems
        ],
    }


def _differences(systems: Sequence[System], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Each system less the first one; no table where none was asked the same items."""
    first, *others = systems
    found = [(system.label, differences(system, first)) for system in others]
    rows = [
        [
            label,
            *(
                f"{paired.difference.mean:+.2f}, {paired.verdict}"
                if (paired := by_task.get(task))
                else "-"
                for task in tasks
            ),
        ]
        for label, by_task in found
        if by_task
    ]
    return (
        [
            {
                "title": f"Less {first.label}, on the same items",
                "columns": ["system", *tasks],
                "rows": rows,
            }
        ]
        if rows
        else []
    )


def _own_models(systems: Sequence[System], tasks: Sequence[str]) -> dict[str, Any]:
    domains = [task for task in tasks if any(task in system.branches for system in systems)]
    return {
        "title": "A domain's own model, on its own items, and on general ones",
        "columns": ["system", *domains],
        "rows": [
            [
                system.label,
                *(
                    ", ".join(
                        _shown(scores.get(task)) for task in (domain, GENERAL) if task in scores
                    )
                    for domain in domains
                    for scores in (system.branches.get(domain, {}),)
                ),
            ]
            for system in systems
            if system.branches
        ],
    }


def _spent(systems: Sequence[System]) -> dict[str, Any]:
    return {
        "title": "What they trained with",
        "columns": [
            "system",
            "stages",
            "steps",
            "tokens",
            "learning rate",
            "open parameters",
            "data",
        ],
        "texts": ["data"],
        "rows": [
            [
                "" if index else system.label,
                f"{spent.stages} {spent.kind}",
                f"{spent.steps:,}",
                f"{spent.tokens:,}",
                ", ".join(f"{lr:g}" for lr in spent.lr),
                ", ".join(f"{count:,}" for count in spent.trained),
                ", ".join(spent.data),
            ]
            for system in systems
            for index, spent in enumerate(system.spent)
        ],
    }


def _shown(numbers: Numbers | None) -> str:
    if numbers is None:
        return "-"
    spread = "" if numbers.spread is None else f" ±{numbers.spread:.2f}"
    span = numbers.interval
    over_items = "" if span is None else f" ({span.low:.2f}\u2013{span.high:.2f})"
    return f"{numbers.mean:.2f}{spread}{over_items}"


def _before_after(system: System, task: str) -> str:
    if task not in system.before or task not in system.after:
        return "-"
    return f"{system.before[task].mean:.2f} > {system.after[task].mean:.2f}"
