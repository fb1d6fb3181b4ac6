"""The one way to run a stage."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from megatron_bar.methods import context_of
from megatron_bar.methods.load import load_recipe
from megatron_bar.runtime.disk import explain_disk_faults
from megatron_bar.runtime.distributed import is_main, process_groups
from megatron_bar.runtime.heartbeat import watched
from megatron_bar.runtime.locks import locked
from megatron_bar.stages.context import Context, prepare_folder, write_done

# A server of network files frees the locks of a machine that was lost after a minute and a half.
PATIENCE_SECONDS = 120.0


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
        watched(stage.name), process_groups(stage.layout, context.recipe.seed), _alone(context),
    ):
        if is_main():
            prepare_folder(context)
        dist.barrier()
        facts = stage.run(context)
        if is_main():
            write_done(context, started, facts)


@contextlib.contextmanager
def _alone(context: Context) -> Iterator[None]:
    """One execution of a stage at a time: two would write into the same folder."""
    if not is_main():
        yield
        return
    name = context.stage.name
    with locked(context.run / f".{name.replace('/', '-')}.lock",
                f"{name} of {context.run} is computed by others", PATIENCE_SECONDS):
        yield
