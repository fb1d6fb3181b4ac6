"""All that can be known to be wrong before anything is touched, queued or trained.

`run`, `submit` and `plan` look for the same faults, and tell all of them at once.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path

from megatron_bar.generation.node_servers import ONLY_IN_JOBS
from megatron_bar.launch.check_data import check_data
from megatron_bar.launch.doubts import doubts
from megatron_bar.launch.reuse import is_run
from megatron_bar.launch.stale import run_folder
from megatron_bar.launch.starts import dense_model
from megatron_bar.launch.work import Work
from megatron_bar.methods import stage_graph
from megatron_bar.methods.values import value_faults
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.console import warn
from megatron_bar.runtime.disk import existing, unwritable
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.faults import Fault, Faults, require, tell_absent, wherever
from megatron_bar.stages.rlvr import RlvrStage
from megatron_bar.stages.stage import Stage

_WORTH_TELLING = 2.0  # seconds that a check took


def check_works(works: Sequence[Work], installed: bool = True, absent: bool = True) -> None:
    """Check recipes whose work is done one after the other.

    Raises BarError with all faults. `installed` is whether this Python will run the stages. Without
    `absent` it is no reason by itself that something isn't on this machine; it is reported.
    """
    started, faults = time.monotonic(), []
    made = [work.run.absolute() for work in works]
    for work in works:
        found = check_recipe(work.recipe, work.names, made)
        if installed:
            found += check_installed(work.recipe, work.names)
        faults += [fault for fault in found if fault not in faults]
    if absent or wherever(faults):
        require(faults)
    tell_absent(faults)
    for line in dict.fromkeys(line for work in works for line in _doubts(work)):
        warn(f"warning: {line}")
    if (seconds := time.monotonic() - started) > _WORTH_TELLING:
        warn(f"checked in {seconds:.0f} s: the recipe, its models, and a sample of its data")


def _doubts(work: Work) -> list[str]:
    """Those of the stages to be done, but of RLVR's, whose rows are longer as published."""
    try:
        models = stage_models(work.recipe, dense_model(work.recipe))
    except BarError:
        return []  # its sizes can't be known here, which is told
    asked = [stage for stage in work.todo if not isinstance(stage, RlvrStage)]
    return doubts(work.recipe, asked, models)


def check_recipe(
    recipe: Recipe,
    todo: Collection[str] | None = None,
    made: Collection[Path] = (),
    dense: ModelConfig | None = None,
) -> list[Fault]:
    """Faults of a recipe, or [] if it can be run, as far as can be known here.

    That is: values that can't be; models, layouts and parameter groups that don't go together;
    folders and files that are missing or broken; data that a stage couldn't learn from, of which a
    sample is read. What only stages read that are done isn't asked for: `todo` names those to be
    done, all by default. `made` are runs to come, whose stages may be reused. The stages start from
    the model `dense`, by default what the recipe names.

    Nothing is written.
    """
    faults = Faults()
    for fault in value_faults(recipe):
        faults.add(fault)
    stages = [stage for stage in stage_graph(recipe) if todo is None or stage.name in todo]
    _check_folders(recipe, stages, made, faults)
    model = dense or _dense_model(recipe, faults)
    if model is not None:
        _check_models(recipe, model, faults)
    for stage in stage_graph(recipe):
        stage.check_sources(faults)
    positions = None if model is None else model.max_position_embeddings
    check_data(recipe, stages, faults, positions)
    return list(faults)


def check_installed(recipe: Recipe, todo: Collection[str]) -> list[Fault]:
    """Packages that a stage of `todo` asks for and this Python, which will run it, hasn't."""
    faults = Faults()
    for stage in stage_graph(recipe):
        if stage.name in todo:
            stage.check_installed(faults)
    return list(faults)


def check_this_machine(stages: Sequence[Stage], faults: Faults) -> None:
    """Add what these stages ask of a cluster, for running them on this machine."""
    for stage in stages:
        if stage.server_nodes:
            faults.add(ONLY_IN_JOBS, stage.name)


def check_writable(run: Path) -> None:
    """Raise BarError unless the folder of a run can be made, or written to."""
    standing = existing(run)
    if why := unwritable(standing):
        raise BarError(
            f"{standing} can't be written to, and the run is to lie in {run}: {why}; "
            "set runs to another folder"
        )


def _check_folders(
    recipe: Recipe, stages: Sequence[Stage], made: Collection[Path], faults: Faults
) -> None:
    with faults.of():
        check_writable(run_folder(recipe))
    for other in map(Path, recipe.reuse):
        if other.absolute() not in made and not is_run(other):
            faults.add(f"reuse: {other} is not the folder of a run")
    adopted: dict[Path, str] = {}
    for name, domain in recipe.domains.items():
        if domain.checkpoint is not None:
            first = adopted.setdefault(Path(domain.checkpoint).resolve(), name)
            if first != name:
                faults.add(
                    f"domains.{first} and domains.{name} have the same checkpoint "
                    f"{domain.checkpoint}, and a branch is one expert; leave out either"
                )
    for stage in stages:
        stage.check_outside(run_folder(recipe), faults)


def _dense_model(recipe: Recipe, faults: Faults) -> ModelConfig | None:
    """The model that the recipe starts from; None where that can't be known here."""
    try:
        return dense_model(recipe)
    except BarError as error:
        named = (recipe.anchor, recipe.pretrained)
        faults.add(str(error), absent=any(name and not Path(name).is_dir() for name in named))
        return None


def _check_models(recipe: Recipe, dense: ModelConfig, faults: Faults) -> None:
    models = stage_models(recipe, dense)
    for stage in stage_graph(recipe):
        try:
            stage.layout.check()
        except BarError:
            continue  # reported among the values
        stage.check(models[stage.name], faults)


def stage_models(recipe: Recipe, dense: ModelConfig) -> dict[str, ModelConfig]:
    """The model that each stage makes or, if it makes none, reads, by the stage's name."""
    models: dict[str, ModelConfig] = {}
    for stage in stage_graph(recipe):
        read = [models[name] for name in stage.inputs.values()]
        models[stage.name] = stage.model(read, dense)
    return models
