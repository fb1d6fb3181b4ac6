"""report.html: one page, without scripts or network, that says what a run made and how well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from megatron_bar.analysis.flow import flow_of
from megatron_bar.analysis.headline import anchor_digests, summary, tiles
from megatron_bar.analysis.made import made_model
from megatron_bar.analysis.page import write_page
from megatron_bar.analysis.plots import routing_heatmap, scores_chart, training_curves
from megatron_bar.analysis.routing import describe_routing
from megatron_bar.analysis.routing_page import routing_of
from megatron_bar.analysis.runs import read_recipe, read_stages
from megatron_bar.analysis.scores import Scores, compare, evaluated, model_label
from megatron_bar.analysis.sections import Section, read_sections
from megatron_bar.analysis.suites import read_suites
from megatron_bar.analysis.trained import trained_stages
from megatron_bar.analysis.upgrade import read_upgrade
from megatron_bar.recipe.names import MERGED, ROUTED
from megatron_bar.runtime.errors import BarError

TEMPLATE = "report.html.j2"
_DEVIATIONS_SHOWN = 5
# The page's own sections, in order: its id, which is its template's name too, and its title.
_PARTS = {
    "flow": "Recipe",
    "scores": "Scores",
    "upgrade": "Upgrade",
    "suites": "Benchmarks",
    "made": "Model",
    "router": "Router",
    "curves": "Training",
    "trained": "What trained",
    "anchor": "Anchor",
    "averaging": "Averaging",
    "samples": "Answers",
    "repeat": "Do it again",
}


@dataclass(frozen=True)
class _Part:
    """One section of the page; `section` where a command added it."""

    id: str
    title: str
    template: str
    section: Section | None = None


def write_report(
    run: Path,
    target: Path,
    last: str,
    labels: Mapping[str, str],
    more: Sequence[Section] = (),
) -> None:
    """Write the report of `run` to `target`, in one step. What the run lacks so far is left out.

    `last` is the evaluated model that the run is for, `labels` what kinds of stages are called.
    `more` sections stand beside those that commands have left in the run.

    Raises BarError if no stage is done and no model evaluated, or a file of the run can't be read.
    """
    run, target = Path(run), Path(target)
    results, stages = evaluated(run), read_stages(run)
    if not (results or stages):
        raise BarError(f"{run} holds nothing to report: no stage is done")
    recipe = read_recipe(run)
    scores = compare(results, last)
    sections = [*read_sections(run), *more]
    columns, trained = trained_stages(run, stages)
    deviations, by_group = _deviations(stages)
    content = {
        "flow": flow_of(stages, labels),
        "scores": scores if scores.tasks else None,
        "made": made_model(run, recipe, stages),
        "upgrade": read_upgrade(run),
        "suites": read_suites(run),
        "router": _routings(results),
        "curves": Markup(training_curves(run)),
        "trained": trained,
        "anchor": anchor_digests(stages),
        "averaging": deviations,
        "samples": _samples(results, scores),
        "repeat": True,
    }
    file = run / "recipe.yaml"
    write_page(
        target,
        TEMPLATE,
        name=recipe.get("name") or run.resolve().name,
        when=max((stage["finished"] for stage in stages), default=""),
        parts=section_parts([name for name in _PARTS if content[name]], sections),
        summary=summary(results, last),
        tiles=tiles(results, scores, stages, last),
        flow=content["flow"],
        in_sequence=recipe.get("order") == "sequence",
        scores=scores,
        suites=content["suites"],
        curves=content["curves"],
        routings=content["router"],
        routing_page=routing_of(run) is not None,
        trained=trained,
        samples=content["samples"],
        made=content["made"],
        anchors=content["anchor"],
        upgrade=content["upgrade"],
        methods=_methods(scores),
        asking=_asking(results),
        scores_chart=Markup(scores_chart(results)),
        trained_columns=columns,
        stages=stages,
        seconds=sum(stage["seconds"] for stage in stages),
        deviations=deviations,
        deviation_groups=by_group,
        versions=_versions(stages),
        commands=_commands(recipe, stages),
        recipe=file.read_text(encoding="utf-8") if file.is_file() else "",
    )


def section_parts(names: Sequence[str], sections: Sequence[Section]) -> list[_Part]:
    """The page's sections in order, each followed by those that ask to stand after it."""
    parts = [_Part(name, _PARTS[name], f"{name}.html.j2") for name in names]
    for section in sections:
        part = _Part(section.id, section.title, "section.html.j2", section)
        place = next((i + 1 for i, p in enumerate(parts) if p.id == section.after), len(parts) - 1)
        parts.insert(place, part)
    return parts


def _routings(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The routed model's router, and the merged one's as it was before it was trained."""
    found = []
    for model in (ROUTED, MERGED):
        result = results.get(model, {})
        if result.get("routing"):
            found.append(
                {
                    "model": model,
                    "picture": Markup(routing_heatmap(result["routing"], result["experts"])),
                    "words": describe_routing(result["routing"], result["experts"]),
                }
            )
    return found


def _deviations(stages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The shared tensors that averaging moved farthest, and the groups they are in."""
    all_ = sorted(
        (
            [
                {**entry, "name": entry["tensor"]}
                for stage in stages
                for entry in stage.get("deviations", ())
            ]
        ),
        key=lambda entry: -entry["largest"],
    )
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in all_:
        if "group" in entry:
            groups.setdefault(entry["group"], []).append(entry)
    by_group = [
        {
            "name": group.replace("_", " "),
            "largest": entries[0]["largest"],
            "mean": fmean(entry["mean"] for entry in entries),
        }
        for group, entries in groups.items()
    ]
    return all_[:_DEVIATIONS_SHOWN], by_group


def _samples(results: dict[str, dict[str, Any]], scores: Scores) -> dict[str, list[dict[str, Any]]]:
    """By task: the items, each with every model's answer, so that answers can be compared."""
    samples: dict[str, list[dict[str, Any]]] = {}
    for task in scores.tasks:
        items: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for model, result in results.items():
            for sample in result["tasks"].get(task, {}).get("samples", ()):
                answers = items.setdefault((sample["prompt"], sample["expected"]), [])
                answers.append(
                    {
                        "model": model_label(model),
                        "score": sample["score"],
                        "response": sample["response"],
                    }
                )
        samples[task] = [
            {"prompt": prompt, "expected": expected, "answers": answers}
            for (prompt, expected), answers in items.items()
        ]
    return samples


def _versions(stages: list[dict[str, Any]]) -> dict[str, str]:
    """Each package's version; several where stages ran with different ones."""
    versions: dict[str, dict[str, None]] = {}
    for stage in stages:
        for package, version in stage["versions"].items():
            versions.setdefault(package, {})[version] = None
    return {package: ", ".join(found) for package, found in versions.items()}


def _methods(scores: Scores) -> str:
    """How the intervals were made, as they stand in the table."""
    found = dict.fromkeys(cell.interval.method for row in scores.rows for cell in row.cells if cell)
    return ", ".join(found)


def _asking(results: dict[str, dict[str, Any]]) -> str:
    """How the models were asked, where it wasn't for one greedy answer."""
    sampled = {
        (result["samples"], result["temperature"])
        for result in results.values()
        if result.get("temperature")
    }
    return " ".join(
        f"Mean of {samples} answers to each item, drawn at temperature {temperature:g}."
        for samples, temperature in sorted(sampled)
    )


def _commands(recipe: dict[str, Any], stages: list[dict[str, Any]]) -> list[str]:
    """What to type to have all of it again, where the recipe was run."""
    run = Path(recipe.get("runs", "runs")) / recipe.get("name", "RUN")
    versions = {
        package: version
        for package, version in _versions(stages).items()
        if package not in ("python", "megatron-bar")
        and "," not in version
        and version != "not installed"
    }
    # A local version, such as 2.13.0+cpu, is one that the package index doesn't have.
    pins = " ".join(
        f"'{package}=={version.partition('+')[0]}'" for package, version in versions.items()
    )
    commands = []
    if pins:
        commands += [f"pip install {pins}", "pip install .    # in megatron-bar's checkout"]
    commands.append("megatron-bar run recipe.yaml")
    if any(stage["stage"] == ROUTED for stage in stages):
        commands.append(f"megatron-bar evaluate {run}/routed/checkpoint --recipe recipe.yaml")
    return [*commands, f"megatron-bar report {run}"]
