"""Every kind of stage, and the one way to run it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch.distributed as dist

from megatron_bar.recipe.load import load_recipe
from megatron_bar.recipe.methods import stage_graph
from megatron_bar.runtime.disk import disk_faults_told
from megatron_bar.runtime.distributed import is_main, process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.heartbeat import watched
from megatron_bar.stages import (
    adopt,
    branch,
    evaluate,
    export_hf,
    import_hf,
    merge,
    pretrain,
    report,
    rlvr,
    route,
    train,
)
from megatron_bar.stages.context import Context, prepare_folder, write_done

KINDS = {
    "pretrain": pretrain.run,
    "import": import_hf.run,
    "branch": branch.run,
    "adopt": adopt.run,
    "midtrain": train.run,
    "sft": train.run,
    "rlvr": rlvr.run,
    "merge": merge.run,
    "average": merge.average,
    "stack": merge.stack,
    "route": route.run,
    "export": export_hf.run,
    "evaluate": evaluate.run,
    "report": report.run,
}

# What becomes of the layout of a kind of stage once the model that it reads is there.
LAYOUTS = {"evaluate": evaluate.layout}

# What a kind of stage has to do before the groups of processes exist.
PREPARE = {"rlvr": rlvr.prepare}


def run_stage(run: Path, name: str) -> None:
    """Run one stage of the run in folder `run`, as one of its ranks.

    Every rank calls this, with torchrun's environment, inside `RaiseOnStopSignal`. A stage's
    function does its work and returns the facts for stage.json, which the main rank writes last;
    `summary` among them is one line.

    Raises BarError if the run has no such stage, and whatever the stage finds wrong; ContinueLater
    when a stop signal came: a stage that trains saves its state first.
    """
    run = Path(run)
    recipe = load_recipe(run / "recipe.yaml")
    stage = next((s for s in stage_graph(recipe) if s.name == name), None)
    if stage is None:
        raise BarError(f"run {run} has no stage {name!r}")
    context = Context(recipe, run, stage)
    if stage.kind in LAYOUTS:
        stage = dataclasses.replace(stage, layout=LAYOUTS[stage.kind](context))
        context = Context(recipe, run, stage)
    started = time.time()
    PREPARE.get(stage.kind, lambda context: None)(context)
    with (
        disk_faults_told(context.folder, lambda: "; what the stage saved before stands"),
        watched(name), process_groups(stage.layout, recipe.seed),
    ):
        if is_main():
            prepare_folder(context)
        dist.barrier()
        facts = KINDS[stage.kind](context)
        if is_main():
            write_done(context, started, facts)
