"""Suites: which benchmarks belong to which category, and what their scores amount to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.plain_yaml import read_yaml

SUITES = Path(__file__).parent / "suites"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: a task of lm-eval and its metric, or why there is none."""

    name: str
    category: str
    task: str | None = None
    metric: str | None = None
    code: bool = False  # runs what the model writes
    needs: Mapping[str, str] = field(default_factory=dict)  # packages, with how versions begin
    missing: str | None = None


@dataclass(frozen=True)
class Suite:
    """Benchmarks by category, and lm-eval's settings for all of them."""

    name: str
    benchmarks: tuple[Benchmark, ...]
    settings: Mapping[str, Any]
    tasks_folder: Path | None = None  # of further tasks, as lm-eval writes them

    @property
    def categories(self) -> list[str]:
        return list(dict.fromkeys(benchmark.category for benchmark in self.benchmarks))


def load_suite(name: str) -> Suite:
    """A suite of ours by its name, or one from a .yaml file. `suites/paper.yaml` tells the keys.

    `tasks` there names a folder, beside the file, of tasks that lm-eval doesn't have.

    Raises BarError for a suite that isn't there or has keys that none has.
    """
    path = Path(name) if name.endswith(".yaml") else SUITES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(suite.stem for suite in SUITES.glob("*.yaml")))
        raise BarError(f"suite {name!r} is unknown; there are {known}, or give a .yaml file")
    content = read_yaml(path, "suite").plain()
    try:
        benchmarks = tuple(
            Benchmark(benchmark, category, **keys)
            for category, members in content["categories"].items()
            for benchmark, keys in members.items()
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise BarError(f"suite {path}: {' '.join(str(error).split())}") from None
    for benchmark in benchmarks:
        if (benchmark.missing is None) != (
            benchmark.task is not None and benchmark.metric is not None
        ):
            raise BarError(f"suite {path}: {benchmark.name} has either task and metric or missing")
    folder = content.get("tasks")
    return Suite(
        path.stem,
        benchmarks,
        content.get("settings") or {},
        folder and (path.parent / folder).absolute(),
    )


def group_scores(
    suite: Suite, measured: Mapping[str, dict[str, Any]], left_out: Mapping[str, str]
) -> dict[str, Any]:
    """The suite's scores by category, as JSON.

    `measured` has `score` and `items` by benchmark, `left_out` why one wasn't run. A category's
    score is the plain mean of its benchmarks that were, `overall` that of the categories; both say
    by `complete` whether nothing is missing.
    """
    categories: dict[str, dict[str, Any]] = {}
    for category in suite.categories:
        members = [b for b in suite.benchmarks if b.category == category]
        scores = {b.name: measured[b.name] for b in members if b.name in measured}
        missing = {b.name: left_out[b.name] for b in members if b.name not in measured}
        categories[category] = {
            "score": fmean(s["score"] for s in scores.values()) if scores else None,
            "complete": not missing,
            "benchmarks": scores,
            "missing": missing,
        }
    known = [c["score"] for c in categories.values() if c["score"] is not None]
    return {
        "suite": suite.name,
        "overall": fmean(known) if known else None,
        "complete": all(c["complete"] for c in categories.values()),
        "categories": categories,
    }
