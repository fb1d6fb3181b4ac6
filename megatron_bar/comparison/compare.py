"""Systems side by side: what each scores, what it forgot and what it cost, over seeds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from megatron_bar.analysis.intervals import Interval, score_interval
from megatron_bar.analysis.paired import Paired, paired_test
from megatron_bar.data.sources import source_name
from megatron_bar.methods import METHODS, last_model, stage_graph
from megatron_bar.methods.graph import ADAPTING
from megatron_bar.methods.load import load_recipe
from megatron_bar.recipe.deciding import deciding
from megatron_bar.recipe.names import ANCHOR
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import read_json
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.evaluate import EvaluateStage
from megatron_bar.stages.export_hf import ExportStage
from megatron_bar.stages.import_hf import ImportStage
from megatron_bar.stages.pretrain import PretrainStage
from megatron_bar.stages.report import ReportStage
from megatron_bar.stages.route import RouteStage
from megatron_bar.stages.stage import Stage
from megatron_bar.stages.training_stage import TrainingStage

Result = dict[str, Any]  # one task's in results.json
# What all systems of a comparison begin with, and what is done with the models that they make.
_NOT_ITS_OWN = (PretrainStage, ImportStage, EvaluateStage, ExportStage, ReportStage)


@dataclass(frozen=True)
class Numbers:
    """One number of a system, for each seed; of a score also its 95 % interval over items.

    Over several seeds an item's score is its mean over them, so the interval is of the seeds' mean.
    """

    values: tuple[float, ...]
    interval: Interval | None = None

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def spread(self) -> float | None:
        """The standard deviation over the seeds (n - 1); None for one seed."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class TrainingCost:
    """Tokens and time of all training stages of one kind in a system; of its first seed."""

    kind: str
    stages: int
    steps: int
    tokens: int  # read, padding included: steps * global_batch_size * sequence_length
    lr: tuple[float, ...]
    trained: tuple[int, ...]  # open parameters, different ones
    data: tuple[str, ...]


@dataclass(frozen=True)
class System:
    """One recipe, run with one or more seeds. Scores are those of its last model."""

    label: str
    method: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    before: dict[str, Numbers]  # the anchor's scores by task
    after: dict[str, Numbers]
    results: dict[str, dict[int, Result]]  # what `after` is of: by task and seed
    overall: Numbers  # the mean over the tasks
    branches: dict[str, dict[str, Numbers]]  # of each domain's own model, scores by task
    tokens: Numbers
    seconds: Numbers  # of processes: a stage of two for a minute counts 120
    spent: tuple[TrainingCost, ...]


@dataclass(frozen=True)
class _Run:
    """What one run left on disk."""

    folder: Path
    recipe: Recipe
    stages: list[tuple[Stage, dict[str, Any]]]  # the system's own, with their stage.json
    before: dict[str, Result]
    after: dict[str, Result]
    branches: dict[str, dict[str, Result]]


def compare_runs(folders: Sequence[Path]) -> list[System]:
    """The systems that runs, and comparisons (folders of runs), hold, in the methods' order.

    Runs of recipes that differ in nothing but the seed, and how it is computed, are one system; a
    run that is named twice counts once.

    Raises BarError for a folder without runs, a run that isn't finished, and two runs of one
    system with one seed.
    """
    by_recipe: dict[str, list[_Run]] = {}
    found = {run.resolve(): run for folder in folders for run in runs_in(folder)}
    for run in map(_read, found.values()):
        by_recipe.setdefault(_but_for_the_seed(run.recipe), []).append(run)
    systems = [_system(runs) for runs in by_recipe.values()]
    order = list(METHODS)
    return sorted(systems, key=lambda system: order.index(system.method))


def runs_in(folder: Path) -> list[Path]:
    """The run that `folder` is, or those that it holds. Raises BarError if it is neither."""
    folder = Path(folder)
    if (folder / "recipe.yaml").is_file():
        return [folder]
    inside = sorted(path.parent for path in folder.glob("*/recipe.yaml"))
    if not inside:
        raise BarError(f"{folder} is neither a run nor a folder of runs")
    return inside


def _read(folder: Path) -> _Run:
    recipe = load_recipe(folder / "recipe.yaml")
    graph = stage_graph(recipe)
    done = {}
    for stage in graph:
        path = folder / stage.name / "stage.json"
        if not path.is_file():
            raise BarError(f"{folder}: {stage.name} isn't done; finish the run first")
        done[stage.name] = read_json(path)
    evaluated = {
        stage.name.removeprefix("evaluate/"): _results(folder / stage.name)
        for stage in graph
        if isinstance(stage, EvaluateStage)
    }
    own = [stage for stage in graph if not isinstance(stage, _NOT_ITS_OWN)]
    return _Run(
        folder,
        recipe,
        [(stage, done[stage.name]) for stage in own],
        evaluated[ANCHOR],
        evaluated[last_model(folder)],
        {name: scores for name, scores in evaluated.items() if name in recipe.domains},
    )


def _results(folder: Path) -> dict[str, Result]:
    tasks = read_json(folder / "results.json")["tasks"]
    if not tasks:
        raise BarError(f"{folder}: no task was evaluated, so there is nothing to compare")
    return tasks


def _but_for_the_seed(recipe: Recipe) -> str:
    plain = dataclasses.replace(recipe, name="", runs="", seed=0, reuse=[], layout=Layout())
    found = deciding(Recipe, dataclasses.asdict(plain))
    return json.dumps([[key_path, setting.value] for key_path, setting in found.items()])


def _system(runs: Sequence[_Run]) -> System:
    runs = sorted(runs, key=lambda run: run.recipe.seed)
    seeds = tuple(run.recipe.seed for run in runs)
    if len(set(seeds)) < len(seeds):
        raise BarError(
            f"{', '.join(str(run.folder) for run in runs)} are runs of one recipe, and "
            "two have the same seed"
        )
    spent = [_spent(run) for run in runs]
    return System(
        label=runs[0].folder.name,
        method=runs[0].recipe.method,
        runs=tuple(str(run.folder) for run in runs),
        seeds=seeds,
        before=_over_seeds([run.before for run in runs]),
        after=_over_seeds([run.after for run in runs]),
        branches={
            name: _over_seeds([run.branches[name] for run in runs]) for name in runs[0].branches
        },
        results={
            task: {run.recipe.seed: run.after[task] for run in runs} for task in runs[0].after
        },
        overall=Numbers(
            tuple(fmean(result["score"] for result in run.after.values()) for run in runs)
        ),
        tokens=Numbers(tuple(sum(s.tokens for s in kinds) for kinds in spent)),
        seconds=Numbers(
            tuple(
                sum(done["seconds"] * stage.layout.processes for stage, done in run.stages)
                for run in runs
            )
        ),
        spent=tuple(spent[0]),
    )


def _over_seeds(results: Sequence[dict[str, Result]]) -> dict[str, Numbers]:
    found = {task: [seed[task] for seed in results] for task in results[0]}
    return {
        task: Numbers(tuple(result["score"] for result in of_seeds), _interval(of_seeds))
        for task, of_seeds in found.items()
    }


def _interval(results: Sequence[Result]) -> Interval | None:
    """Over items. None where seeds asked different numbers of them, or don't tell each one's."""
    if len(results) == 1:
        return score_interval(results[0])
    merged = mean_of_results(results)
    return None if merged is None else score_interval(merged)


def mean_of_results(results: Sequence[Result]) -> Result | None:
    """One result in which an item's score is the mean over `results`; None where they don't fit."""
    items = [scores for result in results if (scores := result.get("items"))]
    if len(items) < len(results) or len({len(scores) for scores in items}) > 1:
        return None
    means = [fmean(scores) for scores in zip(*items)]
    return {
        "items": means,
        "score": fmean(means),
        "count": len(means),
        "samples": [sample for result in results for sample in result.get("samples", ())],
    }


def differences(system: System, other: System) -> dict[str, Paired]:
    """Differences by task: `system` less `other` on the same items, over the seeds that both have.

    A task is left out where they weren't asked the same items.
    """
    seeds = [seed for seed in system.seeds if seed in other.seeds]
    found = {}
    for task in system.results if seeds else ():
        if task in other.results:
            ours, theirs = (
                mean_of_results([one.results[task][seed] for seed in seeds])
                for one in (system, other)
            )
            if ours and theirs and (paired := paired_test(ours, theirs)):
                found[task] = paired
    return found


def _spent(run: _Run) -> list[TrainingCost]:
    by_kind: dict[type[TrainingStage], list[tuple[TrainingStage, dict[str, Any]]]] = {}
    for kind in (*ADAPTING, RouteStage):
        if found := [
            (stage, done)
            for stage, done in run.stages
            if isinstance(stage, TrainingStage) and type(stage) is kind
        ]:
            by_kind[kind] = found
    return [
        TrainingCost(
            kind.KIND,
            len(found),
            sum(done["steps"] for _, done in found),
            sum(
                done["steps"] * stage.training.rows_per_step * stage.training.row_length
                for stage, done in found
            ),
            tuple(dict.fromkeys(stage.training.lr for stage, _ in found)),
            tuple(dict.fromkeys(done["trainable"] for _, done in found)),
            tuple(dict.fromkeys(word for stage, _ in found for word in _data(stage))),
        )
        for kind, found in by_kind.items()
    ]


def _data(stage: TrainingStage) -> list[str]:
    if isinstance(stage, RouteStage):
        return [f"{stage.fraction:.0%} of all SFT data"]
    return [
        source_name(source) + ("" if source.count is None else f" {source.count}")
        for source in stage.sources()
    ]


def comparison_data(systems: Sequence[System]) -> list[dict[str, Any]]:
    """The same as JSON values, each seed's numbers included, and differences from the first."""
    return [
        _plain(system)
        | {
            "less_first": {
                task: _plain(paired) | {"within_noise": paired.within_noise}
                for task, paired in differences(system, systems[0]).items()
            }
        }
        for system in systems
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Numbers):
        span = value.interval and [value.interval.low, value.interval.high]
        return {
            "values": list(value.values),
            "mean": value.mean,
            "spread": value.spread,
            "interval": span,
        }
    if dataclasses.is_dataclass(value):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.name != "results"
        }
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value
