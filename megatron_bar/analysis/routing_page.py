"""routing.html: one page, without scripts or network, on what the routed model's routers do.

The tokens of some texts are coloured by the expert that they go to. A layer is chosen by a style
sheet alone: every token brings its colour in each layer as a variable.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from megatron_bar.analysis.page import write_page
from megatron_bar.analysis.plots import routing_heatmap, shares_panel
from megatron_bar.analysis.routing import (
    ROUTING,
    describe_drift,
    describe_entropy,
    describe_kinds,
    describe_routing,
    mean_over_layers,
)
from megatron_bar.analysis.runs import read_recipe
from megatron_bar.recipe.names import ROUTED
from megatron_bar.runtime.files import read_json

PAGE = "routing.html"
_TEMPLATE = "routing.html.j2"
_LAYERS_SHOWN = 8
# Okabe and Ito's colours, which colour-blind readers tell apart; the anchor is grey.
_COLOURS = ("#8a94a3", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a200")


def write_routing_page(run: Path, target: Path) -> bool:
    """Write the page of `run`'s routed model to `target`, in one step.

    Returns False, and writes nothing, where that model hasn't been evaluated.
    """
    run, target = Path(run), Path(target)
    found = routing_of(run)
    if found is None:
        return False
    experts, tasks = found["experts"], found["tasks"]
    drift = _drift(run)
    layers = _layers(tasks)
    colours = [_colour(e) for e in range(len(experts))]
    write_page(
        target,
        _TEMPLATE,
        name=read_recipe(run).get("name") or run.resolve().name,
        experts=list(zip(experts, colours)),
        words=describe_routing({task: routed["layers"] for task, routed in tasks.items()}, experts)
        + describe_kinds(tasks, experts)
        + [describe_entropy(tasks, experts)]
        + ([describe_drift(drift, experts)] if drift else []),
        by_layer=Markup(
            routing_heatmap({task: routed["layers"] for task, routed in tasks.items()}, experts)
        ),
        by_kind=Markup(_panels(tasks, experts, "kinds", "kind of token")),
        by_speaker=Markup(_panels(tasks, experts, "speakers", "speaker")),
        entropy=[(task, routed["tokens"], routed["entropy"]) for task, routed in tasks.items()],
        drift=drift
        and [
            (name, [row[e] for row in drift["relative"]], [row[e] for row in drift["cosine"]])
            for e, name in enumerate(experts)
        ],
        layers=layers,
        even=math.log(len(experts)),
        texts={
            task: [_tokens(example, experts, colours, layers) for example in routed["examples"]]
            for task, routed in tasks.items()
        },
    )
    return True


def routing_of(run: Path) -> dict[str, Any] | None:
    """The record of `run`'s routed model's routers that its evaluation wrote, if it has."""
    path = run / "evaluate" / ROUTED / ROUTING
    return read_json(path) if path.is_file() else None


def _drift(run: Path) -> dict[str, list[list[float]]] | None:
    path = run / ROUTED / "stage.json"
    return read_json(path).get("router_drift") if path.is_file() else None


def _layers(tasks: dict[str, Any]) -> list[int]:
    """The layers to choose from, counted from 0: all, or some spread over the depth."""
    count = max((len(routed["layers"]) for routed in tasks.values()), default=0)
    shown = min(count, _LAYERS_SHOWN)
    return sorted({round(i * (count - 1) / max(1, shown - 1)) for i in range(shown)})


def _panels(tasks: dict[str, Any], experts: Sequence[str], by: str, what: str) -> str:
    """A panel a task: mean share over the layers, by kind of token or speaker."""
    return "".join(
        shares_panel(
            task,
            [mean_over_layers(part["layers"]) for part in routed[by].values()],
            experts,
            f"Mean share of each expert on {task}, by {what}",
            names=list(routed[by]),
        )
        for task, routed in tasks.items()
    )


def _tokens(
    example: dict[str, Any], experts: Sequence[str], colours: Sequence[str], layers: Sequence[int]
) -> list[dict[str, Any]]:
    """Each token: its text, what to say of it, and its colour on the mean and in each layer."""
    tokens = []
    for text, kind, speaker, shares_LE in zip(
        example["texts"], example["kinds"], example["speakers"], example["shares"]
    ):
        mean_E = mean_over_layers(shares_LE)
        ranked = sorted(range(len(experts)), key=lambda e: -mean_E[e])
        said = ", ".join(f"{experts[e]} {mean_E[e]:.0%}" for e in ranked)
        shown = [_blend(mean_E, colours), *(_blend(shares_LE[i], colours) for i in layers)]
        tokens.append(
            {
                "text": text,
                "speaker": speaker,
                "title": f"{said} ({kind}, {speaker})",
                "style": ";".join(f"--c{i}:{colour}" for i, colour in enumerate(shown)),
            }
        )
    return tokens


def _colour(expert: int) -> str:
    if expert < len(_COLOURS):
        return _COLOURS[expert]
    hue = (expert * 0.618) % 1  # steps of the golden ratio don't come near each other soon
    return "#" + "".join(f"{round(255 * c):02x}" for c in colorsys.hsv_to_rgb(hue, 0.7, 0.8))


def _blend(shares_E: Sequence[float], colours: Sequence[str]) -> str:
    """The colour of the expert with the largest share, the paler the smaller that is."""
    best = max(range(len(shares_E)), key=shares_E.__getitem__)
    strength = 0.15 + 0.65 * shares_E[best]
    parts = [int(colours[best][i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 + (part - 255) * strength):02x}" for part in parts)
