"""Choices of a model's routers, said in words. Shapes: L layers, E experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

ROUTING = "routing.json"  # of an evaluated model: `experts`, and how each of its `tasks` routes
DEAD = 0.02  # an expert that no layer gives more of any task
DOMINATING = 0.8  # an expert that gets more of every task
STANDS_OUT = 0.1  # more than an expert has of all tokens
EVEN = 1.25  # times 1/E: no expert gets more, so the task leans on none


def mean_over_layers(probs_LE: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(probs_LE) for column in zip(*probs_LE)]


def describe_routing(routing: dict[str, list[list[float]]], experts: Sequence[str]) -> list[str]:
    """One line a task, on the expert it leans on; then the experts that are dead or dominate.

    `routing` is [L][E] by task, `experts` the names by global id.
    """
    means = {task: mean_over_layers(probs_LE) for task, probs_LE in routing.items()}
    lines = [_describe(task, mean_E, experts) for task, mean_E in means.items()]
    for e, name in enumerate(experts):
        probs = [layer_E[e] for probs_LE in routing.values() for layer_E in probs_LE]
        if not probs or len(experts) < 2:
            continue
        least = min(mean_E[e] for mean_E in means.values())
        if max(probs) < DEAD:
            lines.append(f"Expert {name} is dead: no layer gives it {DEAD:.0%} of any task.")
        elif least > DOMINATING:
            lines.append(
                f"Expert {name} dominates: every task gives it {least:.0%} or more, which leaves "
                "little to the others."
            )
    return lines


def _describe(task: str, mean_E: list[float], experts: Sequence[str]) -> str:
    ranked = sorted(range(len(experts)), key=lambda e: -mean_E[e])
    best, second = ranked[0], ranked[1:2]
    if mean_E[best] < EVEN / len(experts):
        return f"{task} leans on no expert: {experts[best]} has most, with {mean_E[best]:.0%}."
    who = "its own expert" if experts[best] == task else experts[best]
    line = f"{task} leans on {who} ({mean_E[best]:.0%})"
    line += "".join(f", then {experts[e]} ({mean_E[e]:.0%})" for e in second)
    if task in experts and experts.index(task) not in (best, *second):
        line += f"; its own expert has {mean_E[experts.index(task)]:.0%}"
    return f"{line}."


def describe_kinds(tasks: dict[str, dict[str, Any]], experts: Sequence[str]) -> list[str]:
    """A line for each kind of token or speaker, over all tasks, that leans elsewhere than most do.

    `tasks` is what `routed_tokens.route_texts` found, by task.
    """
    lines = []
    every_E = _pooled(list(tasks.values()))
    for by in ("kinds", "speakers"):
        for name in dict.fromkeys(name for task in tasks.values() for name in task[by]):
            mean_E = _pooled([task[by][name] for task in tasks.values() if name in task[by]])
            e = max(range(len(experts)), key=lambda e: mean_E[e] - every_E[e])
            if mean_E[e] - every_E[e] >= STANDS_OUT:
                what = "What the template adds" if name == "template" else f"{name.capitalize()}"
                what = f"{what} tokens" if by == "speakers" and name != "template" else what
                lines.append(
                    f"{what}: {experts[e]} has {mean_E[e]:.0%}, where it has "
                    f"{every_E[e]:.0%} of all tokens."
                )
    return list(dict.fromkeys(lines))


def _pooled(parts: Sequence[dict[str, Any]]) -> list[float]:
    """Mean share by expert, over layers and tokens."""
    tokens = sum(part["tokens"] for part in parts)
    means = [(part["tokens"], mean_over_layers(part["layers"])) for part in parts]
    return [
        sum(count * mean_E[e] for count, mean_E in means) / tokens for e in range(len(means[0][1]))
    ]


def describe_entropy(tasks: dict[str, dict[str, Any]], experts: Sequence[str]) -> str:
    """A sentence on how sharply the routers choose."""
    layers = [
        (entropy, layer)
        for task in tasks.values()
        for layer, entropy in enumerate(task["entropy"], 1)
    ]
    mean = sum(entropy for entropy, _ in layers) / len(layers)
    return (
        f"A token's probability is spread over {math.exp(mean):.1f} of {len(experts)} experts "
        f"(the exponential of the mean entropy, {mean:.2f} nats)."
    )


def describe_drift(drift: dict[str, list[list[float]]], experts: Sequence[str]) -> str:
    """A sentence on how far router training moved the rows from where they were stacked."""
    moved_E = mean_over_layers(drift["relative"])
    most, least = (choose(range(len(experts)), key=moved_E.__getitem__) for choose in (max, min))
    return (
        f"Training moved the rows by {moved_E[least]:.0%} ({experts[least]}) to "
        f"{moved_E[most]:.0%} ({experts[most]}) of their stacked length."
    )
