"""A run in a sentence or two, and in the few numbers to see first."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from megatron_bar.analysis.formats import duration, percent
from megatron_bar.analysis.runs import ANCHOR, ROUTED
from megatron_bar.analysis.scores import Scores, branches, compare, model_label


def summary(results: dict[str, dict[str, Any]]) -> str:
    """The run in a sentence or two."""
    scores = compare(results)
    if not results:
        return "No model has been evaluated yet."
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


def tiles(
    results: dict[str, dict[str, Any]], scores: Scores, stages: list[dict[str, Any]]
) -> list[tuple[str, str]]:
    """The few numbers to see first, each with what it is."""
    found = []
    if scores.kept:
        found.append((percent(fmean(scores.kept.values())), "of the branches' scores kept"))
    domains = branches(results)
    pairs = [pair for domain in domains if (pair := _before_after(results, domain))]
    if pairs:
        before, after = (fmean(column) for column in zip(*pairs))
        found.append((f"{before:.2f} → {after:.2f}", "mean over the domains, base → routed"))
    for task in scores.tasks:
        pair = _before_after(results, task)
        if pair and task not in domains:
            found.append((f"{pair[0]:.2f} → {pair[1]:.2f}", f"{task}, base → routed"))
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
