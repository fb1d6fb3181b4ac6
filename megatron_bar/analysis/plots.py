"""Pictures of a run, one small `<svg>` a panel; see `panel`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from megatron_bar.analysis.panel import (
    BASE,
    BRANCH,
    INK,
    INVERSE,
    LINE,
    MERGE,
    ROUTE,
    SHARE,
    svg_panel,
)
from megatron_bar.analysis.runs import stage_names
from megatron_bar.analysis.scores import Cell, compare, model_label
from megatron_bar.recipe.names import ALL, ANCHOR, MERGED, ROUTED
from megatron_bar.training.metrics import read_metrics

_SMOOTH_FROM = 40  # points; fewer are drawn as they are
_PRINTED = 48  # numbers in a panel of the heatmap; more would not be readable
_DARK = 0.68  # shares above it are printed in light ink


def training_curves(run: Path) -> str:
    """One panel for each stage of `run` that trained: loss, or in RLVR reward, over steps."""
    panels = []
    for name in stage_names(run, "metrics.jsonl"):
        metrics = read_metrics(Path(run) / name)
        what = "reward" if any("reward" in m for m in metrics) else "loss"
        known = [m for m in metrics if m.get(what) is not None]
        if known:
            checked = [
                (m["step"], m["validation_loss"])
                for m in metrics
                if what == "loss" and m.get("validation_loss") is not None
            ]
            panels.append(
                _curve(name, what, [m["step"] for m in known], [m[what] for m in known], checked)
            )
    return "".join(panels)


def _curve(
    name: str,
    what: str,
    steps: Sequence[int],
    values: Sequence[float],
    checked: Sequence[tuple[int, float]],
) -> str:
    def draw(axes: Axes) -> None:
        smooth = len(steps) >= _SMOOTH_FROM
        axes.plot(
            steps,
            values,
            color=BRANCH,
            linewidth=1.0 if smooth else 1.8,
            alpha=0.3 if smooth else 1.0,
            marker="o" if len(steps) == 1 else None,
        )
        if smooth:
            axes.plot(steps, _smoothed(values), color=BRANCH, linewidth=1.8)
        if checked:
            axes.plot(*zip(*checked), color=MERGE, linewidth=1.2, marker="o", markersize=2.5)
        axes.annotate(
            f"{values[-1]:.3f}",
            (1, 1.03),
            xycoords="axes fraction",
            ha="right",
            va="bottom",
            color=BRANCH,
            weight="bold",
        )
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.set_ylabel(what)
        axes.set_ylim(bottom=min(0.0, min(filter(math.isfinite, values), default=0.0)))
        axes.set_xlim(min(steps[0], 0), max(steps[-1], 1))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", color=LINE, linewidth=0.6)

    return svg_panel(
        draw,
        2.2,
        f"{what.capitalize()} of {name}: {values[0]:.3f} at step {steps[0]}, "
        f"{values[-1]:.3f} at step {steps[-1]}",
    )


def _smoothed(values: Sequence[float]) -> list[float]:
    """Mean over a tenth of the curve around each point, less at its ends: always centred."""
    reach = len(values) // 20
    means = []
    for i in range(len(values)):
        side = min(reach, i, len(values) - 1 - i)
        around = [v for v in values[i - side : i + side + 1] if math.isfinite(v)]
        means.append(fmean(around) if around else math.nan)
    return means


def routing_heatmap(routing: dict[str, list[list[float]]], experts: Sequence[str]) -> str:
    """One panel for each task, layers by experts, all in the same colours from 0 to 1."""
    if not routing:
        return ""
    panels = [
        shares_panel(
            task, probs_LE, experts, f"Mean router probability on {task}, by layer and expert"
        )
        for task, probs_LE in routing.items()
    ]
    return "".join([*panels, _scale_panel()])


def shares_panel(
    title: str,
    shares_RE: Sequence[Sequence[float]],
    experts: Sequence[str],
    label: str,
    names: Sequence[str] | None = None,
) -> str:
    """One heatmap from 0 to 1, a row for each of `names` or each layer, a column an expert."""
    count = len(shares_RE)
    printed = count * len(experts) <= _PRINTED
    wide = sum(len(name) for name in experts) > 26

    def draw(axes: Axes) -> None:
        _draw_shares(axes, shares_RE, gap=0.05 if printed else 0.0)
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)
        axes.set_title(title)
        axes.set_xticks(
            [e + 0.5 for e in range(len(experts))],
            experts,
            rotation=35 if wide else 0,
            ha="right" if wide else "center",
        )
        axes.tick_params(axis="x", pad=1 if wide else 4)
        if names is None:
            step = max(1, -(-count // 16))
            axes.set_ylabel("layer")
            axes.set_yticks(
                [row + 0.5 for row in range(0, count, step)],
                [str(layer) for layer in range(1, count + 1, step)],
            )
        else:
            axes.set_yticks([row + 0.5 for row in range(count)], names)
        for row, shares_E in enumerate(shares_RE if printed else ()):
            for e, share in enumerate(shares_E):
                axes.text(
                    e + 0.5,
                    row + 0.5,
                    f"{share:.2f}",
                    ha="center",
                    va="center",
                    color=INVERSE if share > _DARK else INK,
                )

    height = 0.85 + (0.3 if wide else 0) + min(4.0, max(1.0, count * (0.3 if printed else 0.13)))
    return svg_panel(draw, height, label)


def _draw_shares(axes: Axes, shares_RE: Sequence[Sequence[float]], gap: float) -> None:
    """A cell for each share, the more opaque the larger it is: readable on light and on dark."""
    for row, shares_E in enumerate(shares_RE):
        for e, share in enumerate(shares_E):
            axes.add_patch(
                Rectangle(
                    (e + gap / 2, row + gap / 2),
                    1 - gap,
                    1 - gap,
                    facecolor=SHARE,
                    alpha=0.04 + 0.96 * min(max(share, 0.0), 1.0),
                    linewidth=0,
                    clip_on=False,
                )
            )
    axes.set_xlim(0, len(shares_RE[0]))
    axes.set_ylim(0, len(shares_RE))


def _scale_panel() -> str:
    def draw(axes: Axes) -> None:
        _draw_shares(axes, [[share / 10 + 0.05 for share in range(10)]], gap=0.05)
        axes.spines[:].set_visible(False)
        axes.set_yticks([])
        axes.set_xticks(range(0, 11, 2), ["0", "0.2", "0.4", "0.6", "0.8", "1"])
        axes.set_title("mean share of the expert", fontsize=9.5, weight="normal")

    return svg_panel(draw, 0.75, "Scale: from faint for 0 to full for 1")


def scores_chart(results: dict[str, dict[str, Any]]) -> str:
    """One panel for each task: a bar for every model that was asked it, with its 95 % interval.

    For a domain these are the base, its branch, the merged and the routed model; for what belongs
    to no domain also every other branch, which shows what its training forgot.
    """
    scores = compare(results)
    colours = {ANCHOR: BASE, ALL: ROUTE, MERGED: MERGE, ROUTED: ROUTE}
    panels = []
    for index, task in enumerate(scores.tasks):
        rows = [row for row in scores.rows if row.cells[index]]
        panels.append(
            _scores_panel(
                task,
                ["branch" if row.model == task else model_label(row.model) for row in rows],
                [cell for row in rows if (cell := row.cells[index]) is not None],
                [colours.get(row.model, BRANCH) for row in rows],
            )
        )
    return "".join(panels)


def _scores_panel(task: str, labels: list[str], cells: list[Cell], colours: list[str]) -> str:
    def draw(axes: Axes) -> None:
        places = range(len(cells))
        values = [cell.score for cell in cells]
        axes.barh(places, values, color=colours, height=0.68)
        axes.errorbar(
            values,
            places,
            fmt="none",
            ecolor=INK,
            elinewidth=1.0,
            capsize=2.5,
            xerr=[
                [cell.score - cell.interval.low for cell in cells],
                [cell.interval.high - cell.score for cell in cells],
            ],
        )
        for place, cell in zip(places, cells):
            axes.text(1.04, place, f"{cell.score:.2f}", va="center", weight="bold")
        axes.set_yticks(places, labels)
        axes.tick_params(axis="y", colors=INK)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.grid(axis="x", color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.set_title(task)

    said = ", ".join(f"{label} {cell.score:.2f}" for label, cell in zip(labels, cells))
    return svg_panel(draw, 0.65 + 0.29 * len(cells), f"Scores on {task}: {said}")
