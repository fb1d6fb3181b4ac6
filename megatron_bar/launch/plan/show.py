"""A plan as tables and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from rich.table import Table

from megatron_bar.costs.fitting import keys_of
from megatron_bar.costs.layouts import layout_sizes
from megatron_bar.costs.machine import Machine
from megatron_bar.costs.memory import PROMPT_TOKENS
from megatron_bar.launch.plan.growth import Growth
from megatron_bar.launch.plan.show_speed import new_table, readable_bytes, speed_assumptions
from megatron_bar.runtime.disk import check_output_file
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.known import known_sum
from megatron_bar.stages.evaluate import EvaluateStage
from megatron_bar.stages.plan import StagePlan

_PLOTTED_DOMAINS = 8
_UNKNOWN = "?"


def cost_table(plans: Sequence[StagePlan]) -> Table:
    """A table of what each stage trains, computes and costs."""
    table = new_table(
        "stage", "GPUs", "parameters", "active", "trainable", "steps", "EFLOP", "hours", "GPU-hours"
    )
    for plan in plans:
        table.add_row(
            plan.stage.name,
            str(plan.gpus),
            _count(plan.total),
            _count(plan.active),
            _count(plan.trainable),
            _known(plan.steps, "{:,}") if plan.trainable else "",
            _known(plan.flops and plan.flops / 1e18, "{:,.4g}"),
            _known(plan.seconds and plan.seconds / 3600, "{:,.2f}"),
            _known(plan.gpu_hours, "{:,.1f}"),
        )
    whole = known_sum(plan.gpu_hours for plan in plans)
    table.add_row("all", *[""] * 7, _known(whole, "{:,.1f}"))
    return table


def disk_table(plans: Sequence[StagePlan]) -> Table:
    """Bytes that a stage writes to disk: what stays, and a state to go on from."""
    table = new_table("stage", "checkpoint", "saved state")
    for plan in plans:
        if plan.checkpoint:
            table.add_row(
                plan.stage.name, readable_bytes(plan.checkpoint), readable_bytes(plan.saved_state)
            )
    return table


def disk_line(plans: Sequence[StagePlan]) -> str:
    """Bytes of all checkpoints, and of states to go on from while domains train side by side."""
    side_by_side: dict[str, int] = {}
    alone = 0
    for plan in plans:
        if plan.training is None:
            continue
        states = (plan.training.keep + 1) * plan.saved_state  # the newest beside those it replaces
        domain, slash, _ = plan.stage.name.partition("/")
        if slash:
            side_by_side[domain] = max(side_by_side.get(domain, 0), states)
        else:
            alone = max(alone, states)
    stay = sum(plan.checkpoint for plan in plans)
    meanwhile = max(alone, sum(side_by_side.values()))
    return (
        f"Disk: {readable_bytes(stay)} of checkpoints stay, and states to go on from take up to "
        f"{readable_bytes(meanwhile)} more while domains train side by side; tokenized data, and "
        "results that are kept until they are made anew, come on top."
    )


def memory_table(plans: Sequence[StagePlan], machine: Machine) -> Table:
    """Bytes by kind on the GPU that needs most, and what to do where that is too much."""
    table = new_table(
        "stage",
        "layout",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "KV cache",
        "buffers",
        "GiB in all",
        f"of {machine.memory} GiB",
        "host",
    )
    for plan in plans:
        memory = plan.memory
        if not memory.weights:
            continue
        advice = "fits"
        if plan.too_big:
            advice = (
                f"too big; fits with {keys_of(plan.suggestion)}"
                if plan.suggestion
                else "too big; needs more processes"
            )
        table.add_row(
            plan.stage.name,
            str(plan.stage.layout),
            *(
                f"{size / 2**30:.1f}"
                for size in (
                    memory.weights,
                    memory.gradients,
                    memory.optimizer,
                    memory.activations,
                    memory.cache,
                    memory.buffers,
                    memory.total,
                )
            ),
            advice,
            f"{memory.host / 2**30:.1f}" if memory.host else "",
        )
    return table


def growth_table(growth: Growth) -> Table:
    """GPU-hours for the first expert, each further one and an upgrade, either way."""
    table = new_table("GPU-hours", "BAR", "retraining the dense model")
    for number, (domain, bar, monolith) in enumerate(
        zip(growth.domains, growth.bar, growth.monolith), 1
    ):
        table.add_row(f"expert {number}, {domain}", f"{bar:,.1f}", f"{monolith:,.1f}")
    table.add_row(
        "all, one after another", f"{sum(growth.bar):,.1f}", f"{sum(growth.monolith):,.1f}"
    )
    for domain in growth.domains:
        bar, monolith = growth.upgrade(domain)
        table.add_row(f"a better {domain} expert", f"{bar:,.1f}", f"{monolith:,.1f}")
    return table


def check_picture(path: Path) -> None:
    """Raise BarError unless `plot_growth` can write a picture there."""
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise BarError(
            f"{path} can't be written: a picture's name ends in one of "
            f"{', '.join(f'.{kind}' for kind in kinds)}"
        )
    check_output_file(path)


def plot_growth(growth: Growth, path: Path) -> None:
    """Cumulative GPU-hours by number of domains, into a picture matplotlib can write."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    longer = growth.extended(_PLOTTED_DOMAINS)
    counts = range(1, len(longer.domains) + 1)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(counts, list(accumulate(longer.monolith)), "o-", label="retraining the dense model")
    axes.plot(counts, list(accumulate(longer.bar)), "o-", label="BAR")
    if len(longer.domains) > len(growth.domains):
        axes.axvspan(
            len(growth.domains) + 0.5,
            counts[-1] + 0.5,
            alpha=0.08,
            label="beyond the recipe, at mean cost",
        )
    axes.set(
        xlabel="domains, added one after another", ylabel="GPU-hours in all", xticks=list(counts)
    )
    axes.legend()
    figure.savefig(path, dpi=150)


def advice(plans: Sequence[StagePlan]) -> list[str]:
    """Changes where a stage doesn't fit, and hints where something isn't known."""
    suggestions: dict[str, list[str]] = {}
    for plan in plans:
        if plan.too_big:
            suggestions.setdefault(_suggestion(plan), []).append(plan.stage.name)
    lines = [
        f"too big: {', '.join(stages)}; {suggestion}" for suggestion, stages in suggestions.items()
    ]
    unknown = [plan for plan in plans if plan.seconds is None]
    if trained := dict.fromkeys(p.stage.recipe_section for p in unknown if p.trainable):
        lines.append(
            "steps of ? need the data, which isn't all here; or give steps or tokens in "
            f"place of epochs: {', '.join(trained)}"
        )
    if any(isinstance(plan.stage, EvaluateStage) for plan in unknown):
        lines.append(
            "evaluations of ? need the items of domains.*.tasks and evaluate.general, "
            "which aren't all here; or give each source of them a count"
        )
    return lines


def assumptions(machine: Machine) -> str:
    """The assumptions behind the tables, in a few sentences."""
    return (
        f"Assumed: {machine.gpu}, {machine.per_node} GPUs a node; full rows, prompts and "
        f"responses, items of {PROMPT_TOKENS} tokens to evaluate. Weights, gradients and optimizer "
        "are counted; activations and buffers are estimates. A KV cache takes the place of "
        f"activations. Conversions are reckoned in fp32. {speed_assumptions(machine)}"
    )


def _suggestion(plan: StagePlan) -> str:
    key = plan.stage.recipe_section
    if plan.suggestion is None:
        return f"give it more processes, in {key}.layout"
    changes = [
        f"{key}.{name}={value}" for name, value in plan.suggestion.items() if name != "layout"
    ]
    if (layout := plan.suggestion.get("layout")) is not None:
        sizes = {"processes": layout.processes, **layout_sizes(layout)}
        if plan.stage.layout.expert_tensor is not None:  # it would stay
            sizes["expert_tensor"] = layout.resolved_expert_tensor
        words = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        changes.append(f"'{key}.layout={{{words}}}'")
    return f"fits with {' '.join(changes)}"


def _known(value: float | None, form: str) -> str:
    return _UNKNOWN if value is None else form.format(value)


def _count(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number) if number else ""
