"""`megatron-bar plan`, and the machine that a plan is made for."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_bar.runtime.errors import BarError

if TYPE_CHECKING:
    from megatron_bar.costs.machine import Machine
    from megatron_bar.stages.plan import StagePlan

DOES_NOT_FIT = 3  # exit status of a plan with stages that are too big for their GPUs


def planned_machine(args: argparse.Namespace) -> Machine:
    """The machine that a plan is made for: a site's or the usual, with what options say."""
    from megatron_bar.costs.machine import Machine, check_machine
    from megatron_bar.launch.slurm.site import load_site, machine_of

    machine = Machine() if args.site is None else machine_of(load_site(args.site))
    said = {"gpu": args.gpu, "memory": args.memory, "mfu": args.mfu}
    machine = dataclasses.replace(
        machine, **{key: value for key, value in said.items() if value is not None}
    )
    check_machine(machine, "--")
    return machine


def _show_layouts(name: str, plans: Sequence[StagePlan], machine: Machine) -> None:
    from megatron_bar.costs.layouts import recommended
    from megatron_bar.launch.plan.show_speed import keys_to_set, layouts_table, speed_assumptions
    from megatron_bar.runtime.console import print_wide
    from megatron_bar.stages.plan import ranked_layouts

    plan = next((plan for plan in plans if plan.stage.name == name), None)
    if plan is None:
        raise BarError(
            f"--layouts {name}: there is no such stage; there are "
            f"{', '.join(plan.stage.name for plan in plans if plan.training)}"
        )
    choices = ranked_layouts(plan, machine)
    if not choices:
        processes = plan.stage.layout.processes
        raise BarError(f"--layouts {name}: no layout of {processes} GPUs fits; give it more")
    print_wide(layouts_table(plan, choices, machine))
    print(f"Layouts that fit: {len(choices)}; * is the recipe's. {speed_assumptions(machine)}")
    print(f"Simplest of those within 2 %: {keys_to_set(plan, recommended(choices))}")


def plan(args: argparse.Namespace) -> int:
    """`megatron-bar plan`; the exit status says whether all stages fit."""
    from megatron_bar.cli.simulation import show_simulation
    from megatron_bar.launch.check import check_recipe
    from megatron_bar.launch.doubts import doubts
    from megatron_bar.launch.plan import show
    from megatron_bar.launch.plan.growth import growth
    from megatron_bar.launch.plan.show_speed import speed_table
    from megatron_bar.launch.plan.stages import plan_stages, planned_model
    from megatron_bar.methods.load import load_recipe
    from megatron_bar.runtime.console import print_wide
    from megatron_bar.runtime.faults import require, tell_absent, wherever

    if args.plot is not None:
        show.check_picture(args.plot)
    recipe = load_recipe(args.recipe, args.overrides, values=False)
    faults = check_recipe(recipe)
    require(wherever(faults))
    machine = planned_machine(args)
    model = planned_model(recipe, args.model)
    plans = plan_stages(recipe, model, machine)
    costs = growth(plans, model, machine)
    if args.layouts is not None:
        _show_layouts(args.layouts, plans, machine)
        return 0
    print_wide(
        show.cost_table(plans),
        speed_table(plans),
        show.memory_table(plans, machine),
        show.disk_table(plans),
    )
    if costs is not None:
        print_wide(show.growth_table(costs))
    if args.simulate:
        show_simulation(args, plans, machine)
    print(show.assumptions(machine))
    stages, models = [plan.stage for plan in plans], {plan.stage.name: plan.model for plan in plans}
    for line in [show.disk_line(plans), *show.advice(plans), *doubts(recipe, stages, models)]:
        print(line)
    tell_absent(faults)
    if args.plot is not None:
        if costs is None:
            raise BarError(
                "--plot needs a recipe with branches and the steps of every stage, and "
                "some aren't known"
            )
        show.plot_growth(costs, args.plot)
        print(f"{args.plot} is written")
    return DOES_NOT_FIT if any(plan.too_big for plan in plans) else 0
