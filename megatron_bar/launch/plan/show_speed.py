"""The time of a step as tables: what it is reckoned from, communication, other layouts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from megatron_bar.costs.efficiency import SERVED_SHARE, TOKEN_SECONDS_PER_LAYER
from megatron_bar.costs.layouts import Choice, layout_sizes
from megatron_bar.costs.machine import Machine
from megatron_bar.stages.plan import StagePlan

_LISTED = 12


def speed_table(plans: Sequence[StagePlan]) -> Table:
    """An optimizer step of each stage that trains: bytes, seconds, shares that are waited for.

    `alone` is the share of its peak that a GPU is reckoned to reach without others.
    """
    table = new_table(
        "stage",
        "layout",
        "NVLink/step",
        "network/step",
        "s/step",
        "tok/s a GPU",
        "waiting",
        "no overlap",
        "all overlap",
        "alone",
        "alone is",
    )
    for plan in plans:
        if plan.traffic is None:
            continue
        cells = ["", "", "", "", "", "", "an mfu that was given"]
        training, step = plan.training, plan.step
        if training is not None and step is not None:
            rows = training.global_batch_size * training.row_length
            cells = [
                f"{step.total:,.2f}",
                f"{rows / step.total / plan.stage.layout.processes:,.0f}",
                *(
                    f"{step.exposed(*overlap):.1%}"
                    for overlap in (step.overlap, (False, False), (True, True))
                ),
                f"{step.efficiency.mfu:.1%}",
                step.efficiency.basis,
            ]
        table.add_row(
            plan.stage.name,
            str(plan.stage.layout),
            readable_bytes(plan.traffic.nvlink),
            readable_bytes(plan.traffic.network),
            *cells,
        )
    return table


def layouts_table(plan: StagePlan, choices: Sequence[Choice], machine: Machine) -> Table:
    """The fastest layouts of a stage, and its own marked by a star."""
    keys = "tensor", "context", "pipeline", "expert", "expert_tensor"
    table = new_table(
        plan.stage.name,
        *keys,
        "micro_batch_size",
        "recompute",
        f"GiB of {machine.memory}",
        "s/step",
        "waiting",
        "all overlap",
    )
    assert plan.training is not None  # layouts are ranked of what trains
    for number, choice in enumerate(choices):
        is_own = (
            str(choice.layout) == str(plan.stage.layout)
            and choice.layout.resolved_expert_tensor == plan.stage.layout.resolved_expert_tensor
            and choice.micro_batch_size == plan.training.micro_batch_size
            and choice.recompute == plan.training.recompute
        )
        if number >= _LISTED and not is_own:
            continue
        table.add_row(
            f"{number + 1}{' *' if is_own else ''}",
            *(str(getattr(choice.layout, key)) for key in keys),
            str(choice.micro_batch_size),
            choice.recompute,
            f"{choice.memory.total / 2**30:.0f}",
            f"{choice.seconds:,.2f}",
            f"{choice.time.exposed(*choice.time.overlap):.1%}",
            f"{choice.time.exposed(True, True):.1%}",
        )
    return table


def keys_to_set(plan: StagePlan, choice: Choice) -> str:
    """A choice as the overrides of a recipe that take it."""
    key = plan.stage.recipe_section
    sizes = {"processes": choice.layout.processes, **layout_sizes(choice.layout)}
    words = ", ".join(f"{name}: {size}" for name, size in sizes.items())
    return (
        f"'{key}.layout={{{words}}}' {key}.micro_batch_size={choice.micro_batch_size} "
        f"{key}.recompute={choice.recompute}"
    )


def speed_assumptions(machine: Machine) -> str:
    """The assumptions behind times, in a sentence or two."""
    times = (
        "Times are on paper: what one GPU was measured to reach, corrected where a stage isn't "
        "like what was measured (docs/results/plan.md), and messages by the formulas of rings at "
        f"{machine.nvlink_rate / 1e9:.0f} GB/s a GPU in a node and "
        f"{machine.network_rate / 1e9:.0f} between nodes; waiting is the share of a step for "
        "messages and for other pipeline ranks, as the recipe overlaps them, without and with all "
        "overlap"
    )
    if machine.mfu is not None:
        times = f"Times go by {machine.mfu:.0%} MFU, communication included"
    return (
        f"{times}. Tokens generated in process take {1e3 * TOKEN_SECONDS_PER_LAYER:.1f} ms "
        f"a layer (measured), by servers {SERVED_SHARE:.0%} of the memory's rate (a guess)."
    )


def new_table(*columns: str) -> Table:
    """A table without rows, whose first column holds names and the others numbers."""
    table = Table(box=None)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def readable_bytes(size: float) -> str:
    """A size in the unit that suits it; nothing for none."""
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size:.0f} B" if size else ""
