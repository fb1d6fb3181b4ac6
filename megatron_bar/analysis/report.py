"""report.html: one page, without scripts or network, that says what a run made and how well."""

from __future__ import annotations

import os
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from megatron_bar.analysis.plots import routing_heatmap, scores_chart, training_curves
from megatron_bar.analysis.routing import describe_routing
from megatron_bar.analysis.runs import ANCHOR, MERGED, ROUTED, read_recipe, read_stages
from megatron_bar.analysis.scores import Scores, branches, compare, load_results, model_label
from megatron_bar.analysis.upgrade import read_upgrade
from megatron_bar.runtime.files import staging_path

TEMPLATE = "report.html.j2"
_DEVIATIONS_SHOWN = 5


def write_report(run: Path, target: Path) -> None:
    """Write the report of `run` to `target`, in one step. What the run lacks so far is left out.

    Raises BarError if no model has been evaluated, or a file of the run can't be read.
    """
    run, target = Path(run), Path(target)
    results, stages = load_results(run), read_stages(run)
    scores = compare(results)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
        trim_blocks=True, lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "duration": _duration, "percent": _percent}
    recipe = run / "recipe.yaml"
    page = environment.get_template(TEMPLATE).render(
        name=read_recipe(run).get("name") or run.resolve().name,
        when=max((stage["finished"] for stage in stages), default=""),
        summary=summary(results),
        tiles=_tiles(results, scores, stages),
        scores=scores,
        upgrade=read_upgrade(run),
        scores_chart=Markup(scores_chart(results)),
        curves=Markup(training_curves(run)),
        routings=_routings(results),
        stages=stages,
        seconds=sum(stage["seconds"] for stage in stages),
        anchors=_anchors(stages),
        deviations=_deviations(stages),
        samples=_samples(results, scores),
        versions=_versions(stages),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
    )
    staging = staging_path(target)
    staging.write_text(page, encoding="utf-8", errors="replace")
    os.replace(staging, target)


def summary(results: dict[str, dict[str, Any]]) -> str:
    """The run in a sentence or two."""
    scores = compare(results)
    if not scores.kept:
        models = ", ".join(model_label(model) for model in results)
        return f"There is no routed model to compare with its branches yet; evaluated: {models}."
    worst, best = min(scores.kept, key=scores.kept.get), max(scores.kept, key=scores.kept.get)
    text = f"One model keeps {fmean(scores.kept.values()):.0%} of what its "
    if len(scores.kept) == 1:
        text += f"{worst} branch reached."
    else:
        text += (f"{len(scores.kept)} branches reached on their own domains, from "
                 f"{scores.kept[worst]:.0%} ({worst}) to {scores.kept[best]:.0%} ({best}).")
    for task in scores.tasks:
        pair = _before_after(results, task)
        if pair and task not in branches(results):
            text += f" On {task} it scores {pair[1]:.2f}; the base scored {pair[0]:.2f}."
    return text


def _before_after(results: dict[str, dict[str, Any]], task: str) -> tuple[float, float] | None:
    """Scores of the base and of the routed model, if both were asked."""
    found = [results.get(model, {}).get("tasks", {}).get(task) for model in (ANCHOR, ROUTED)]
    return (found[0]["score"], found[1]["score"]) if all(found) else None


def _tiles(
    results: dict[str, dict[str, Any]], scores: Scores, stages: list[dict[str, Any]]
) -> list[tuple[str, str]]:
    """The few numbers to see first, each with what it is."""
    tiles = []
    if scores.kept:
        tiles.append((_percent(fmean(scores.kept.values())), "of the branches' scores kept"))
    domains = branches(results)
    pairs = [pair for domain in domains if (pair := _before_after(results, domain))]
    if pairs:
        before, after = (fmean(column) for column in zip(*pairs))
        tiles.append((f"{before:.2f} → {after:.2f}", "mean over the domains, base → routed"))
    for task in scores.tasks:
        pair = _before_after(results, task)
        if pair and task not in domains:
            tiles.append((f"{pair[0]:.2f} → {pair[1]:.2f}", f"{task}, base → routed"))
    if anchors := _anchors(stages):
        kept = all(anchor["same"] for anchor in anchors)
        tiles.append(("✓ unchanged", "anchor, to the last bit") if kept else ("changed", "anchor"))
    tiles.append((_duration(sum(stage["seconds"] for stage in stages)), "in all stages together"))
    return tiles


def _routings(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The routed model's router, and the merged one's as it was before it was trained."""
    found = []
    for model in (ROUTED, MERGED):
        result = results.get(model, {})
        if result.get("routing"):
            found.append({
                "model": model,
                "picture": Markup(routing_heatmap(result["routing"], result["experts"])),
                "words": describe_routing(result["routing"], result["experts"]),
            })
    return found


def _anchors(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The anchor's digest before and after each stage that has one.

    A branch and a merge have one only, which is to be the first of the run.
    """
    anchors: list[dict[str, Any]] = []
    for stage in stages:
        digest = stage.get("anchor_digest")
        if not digest:
            continue
        if isinstance(digest, str):
            before, after = "", digest
            same = not anchors or digest == (anchors[0]["before"] or anchors[0]["after"])
        else:
            before, after = digest["before"], digest["after"]
            same = before == after
        anchors.append({"stage": stage["stage"], "before": before, "after": after, "same": same})
    return anchors


def _deviations(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shared tensors that averaging moved farthest."""
    all_ = [entry for stage in stages for entry in stage.get("deviations", ())]
    return sorted(all_, key=lambda entry: -entry["largest"])[:_DEVIATIONS_SHOWN]


def _samples(results: dict[str, dict[str, Any]], scores: Scores) -> dict[str, list[dict[str, Any]]]:
    """By task: the items, each with every model's answer, so that answers can be compared."""
    samples: dict[str, list[dict[str, Any]]] = {}
    for task in scores.tasks:
        items: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for model, result in results.items():
            for sample in result["tasks"].get(task, {}).get("samples", ()):
                answers = items.setdefault((sample["prompt"], sample["expected"]), [])
                answers.append({"model": model_label(model), "score": sample["score"],
                                "response": sample["response"]})
        samples[task] = [{"prompt": prompt, "expected": expected, "answers": answers}
                         for (prompt, expected), answers in items.items()]
    return samples


def _versions(stages: list[dict[str, Any]]) -> dict[str, str]:
    """Each package's version; several where stages ran with different ones."""
    versions: dict[str, dict[str, None]] = {}
    for stage in stages:
        for package, version in stage["versions"].items():
            versions.setdefault(package, {})[version] = None
    return {package: ", ".join(found) for package, found in versions.items()}


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _number(count: int) -> str:
    """1234567 as 1.23 M: three digits are enough to compare."""
    for size, unit in ((10**12, " T"), (10**9, " B"), (10**6, " M"), (10**3, " k")):
        if count >= 0.9995 * size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _duration(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
