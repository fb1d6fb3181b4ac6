"""A run in a sentence or two, and in the few numbers to see first."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from megatron_bar.analysis.formats import duration, percent
from megatron_bar.analysis.scores import Scores, compare, model_label
from megatron_bar.recipe.names import ALL, ANCHOR, GENERAL


def summary(results: dict[str, dict[str, Any]], last: str) -> str:
    """The run in a sentence or two; `last` is the model that it is for."""
    if not results:
        return "No model has been evaluated yet."
    if last not in results:
        models = ", ".join(model_label(model) for model in results)
        name = "final" if last == ALL else last
        return f"There is no {name} model to compare with its branches yet; evaluated: {models}."
    scores = compare(results, last)
    sentences = [_kept(scores.kept)] if scores.kept else _on_domains(results[last]["tasks"])
    if pair := _before_after(results, last, GENERAL):
        sentences.append(f"On {GENERAL} it scores {pair[1]:.2f}; the base scored {pair[0]:.2f}.")
    return " ".join(sentences) or f"There is one model, {model_label(last)}, and no task to ask it."


def _kept(kept: dict[str, float]) -> str:
    text = f"One model keeps {fmean(kept.values()):.0%} of what its "
    if len(kept) == 1:
        return text + f"{next(iter(kept))} branch reached."
    return text + f"{len(kept)} branches reached on their own domains, {_range(kept, '.0%')}."


def _on_domains(tasks: dict[str, dict[str, Any]]) -> list[str]:
    """Of a model that has no branches to be compared with."""
    scores = {task: found["score"] for task, found in tasks.items() if task != GENERAL}
    if not scores:
        return []
    if len(scores) == 1:
        return [f"The model scores {score:.2f} on {task}." for task, score in scores.items()]
    return [
        f"One model for all {len(scores)} domains scores {fmean(scores.values()):.2f} on them, "
        f"{_range(scores, '.2f')}."
    ]


def _range(values: dict[str, float], form: str) -> str:
    worst, best = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    if values[worst] == values[best]:
        return "the same on each"
    return f"from {values[worst]:{form}} ({worst}) to {values[best]:{form}} ({best})"


def _before_after(
    results: dict[str, dict[str, Any]], last: str, task: str
) -> tuple[float, float] | None:
    """Scores of the base and of the last model, if both were asked."""
    found = [results.get(model, {}).get("tasks", {}).get(task) for model in (ANCHOR, last)]
    return (found[0]["score"], found[1]["score"]) if all(found) else None


def tiles(
    results: dict[str, dict[str, Any]],
    scores: Scores,
    stages: list[dict[str, Any]],
    last: str,
) -> list[tuple[str, str]]:
    """The few numbers to see first, each with what it is."""
    found = []
    if scores.kept:
        found.append((percent(fmean(scores.kept.values())), "of the branches' scores kept"))
    pairs = {task: pair for task in scores.tasks if (pair := _before_after(results, last, task))}
    if own := [pair for task, pair in pairs.items() if task != GENERAL]:
        before, after = (fmean(column) for column in zip(*own))
        found.append(
            (f"{before:.2f} → {after:.2f}", f"mean over the domains, base → {scores.last}")
        )
    if GENERAL in pairs:
        before, after = pairs[GENERAL]
        found.append((f"{before:.2f} → {after:.2f}", f"{GENERAL}, base → {scores.last}"))
    if anchors := anchor_digests(stages):
        kept = all(anchor["same"] for anchor in anchors)
        found.append(("✓ unchanged", "anchor, to the last bit") if kept else ("changed", "anchor"))
    found.append((duration(sum(stage["seconds"] for stage in stages)), "in all stages together"))
    return found


def anchor_digests(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
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
