"""The one way to run a stage."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path

import torch.distributed as dist

from megatron_bar.methods import context_of
from megatron_bar.methods.load import load_recipe
from megatron_bar.runtime.disk import explain_disk_faults
from megatron_bar.runtime.distributed import is_main, process_groups
from megatron_bar.runtime.heartbeat import watched
from megatron_bar.runtime.machine_check import check_health
from megatron_bar.stages.at_work import at_work
from megatron_bar.stages.context import Context, prepare_folder, write_done


def run_stage(run: Path, name: str) -> None:
    """Run one stage of the run in folder `run`, as one of its ranks.

    Every rank calls this, with torchrun's environment, inside `RaiseOnStopSignal`. The stage does
    its work and returns the facts for stage.json, which the main rank writes last.

    Raises BarError if the run has no such stage, if others are at work on it, and whatever it finds
    wrong; ContinueLater when a stop signal came: a stage that trains saves its state first.
    """
    run = Path(run)
    carry_out(context_of(load_recipe(run / "recipe.yaml"), run, name))


def carry_out(context: Context) -> None:
    """Do what `run_stage` does, for the stage of a context. Raises as it does."""
    context = dataclasses.replace(context, stage=context.stage.fitted(context))
    stage, started = context.stage, time.time()
    stage.prepare()
    with (
        explain_disk_faults(context.folder, lambda: "; what the stage saved before stands"),
        watched(stage.name),
        process_groups(stage.layout, context.recipe.seed),
        at_work(context.run, stage.name) if is_main() else contextlib.nullcontext(),
    ):
        check_health(context.run)
        if is_main():
            prepare_folder(context)
        dist.barrier()
        facts = stage.run(context)
        if is_main():
            write_done(context, started, facts)
