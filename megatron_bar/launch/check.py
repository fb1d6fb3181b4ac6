"""All that can be known to be wrong before anything is touched, queued or trained.

`run`, `submit` and `plan` look for the same faults, and tell all of them at once.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from megatron_bar.checkpoints import hf
from megatron_bar.checkpoints.adopt import check_branch
from megatron_bar.checkpoints.convert import check_import
from megatron_bar.checkpoints.hf_weights import missing_weights
from megatron_bar.checkpoints.hub import local_folder
from megatron_bar.data.batches import check_length, check_shares
from megatron_bar.data.mixture import check_mixture
from megatron_bar.launch.check_data import check_data
from megatron_bar.launch.faults import Fault, Faults, require, tell_absent, wherever
from megatron_bar.launch.reuse import is_run
from megatron_bar.launch.stale import run_folder
from megatron_bar.launch.starts import dense_model
from megatron_bar.launch.work import Work
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.graph import TRAINING_KINDS, Stage
from megatron_bar.recipe.methods import stage_graph
from megatron_bar.recipe.schema import Recipe, Rlvr
from megatron_bar.recipe.values import value_faults
from megatron_bar.rlvr.backends import missing_backend
from megatron_bar.rlvr.settings import check_settings
from megatron_bar.runtime.console import warn
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.context import parts_of, routed_model, training_of
from megatron_bar.training.groups import group_sizes, matching
from megatron_bar.training.overrides import check_overrides
from megatron_bar.verifiers import verifier_for

_WORTH_TELLING = 2.0  # seconds that a check took


def check_works(
    works: Sequence[Work], installed: bool = True, absent: bool = True
) -> None:
    """Check recipes whose work is done one after the other.

    Raises BarError with all faults. `installed` is whether this Python will run the stages. Without
    `absent` it is no reason by itself that something isn't on this machine; it is told.
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
    if (seconds := time.monotonic() - started) > _WORTH_TELLING:
        warn(f"checked in {seconds:.0f} s: the recipe, its models, and a sample of its data")


def check_recipe(
    recipe: Recipe,
    todo: Collection[str] | None = None,
    made: Collection[Path] = (),
    dense: ModelConfig | None = None,
) -> list[Fault]:
    """What is wrong with a recipe, or [] if it can be run, as far as can be known here.

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
    _check_sources(recipe, faults)
    check_data(recipe, stages, faults)
    return list(faults)


def check_installed(recipe: Recipe, todo: Collection[str]) -> list[Fault]:
    """Packages that a stage of `todo` asks for and this Python, which will run it, hasn't."""
    faults = Faults()
    for stage in stage_graph(recipe):
        if stage.name not in todo:
            continue
        if stage.kind == "rlvr" and (missing := missing_backend(training_of(stage).backend)):
            faults.add(missing, stage.name)
        if "training" in stage.settings and training_of(stage).wandb is not None and (
                importlib.util.find_spec("wandb") is None):
            faults.add("wandb is asked for and not installed; pip install wandb, or leave it out",
                       stage.name)
    return list(faults)


def check_writable(run: Path) -> None:
    """Raise BarError unless the folder of a run can be made, or written to."""
    standing = next(folder for folder in (run, *run.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=standing):
            pass
    except OSError as error:
        raise BarError(f"{standing} can't be written to, and the run is to lie in {run}: "
                       f"{error.strerror}; set runs to another folder") from None


def _check_folders(
    recipe: Recipe, stages: Sequence[Stage], made: Collection[Path], faults: Faults
) -> None:
    with faults.of():
        check_writable(run_folder(recipe))
    for other in map(Path, recipe.reuse):
        if other.absolute() not in made and not is_run(other):
            faults.add(f"reuse: {other} is not the folder of a run")
    for stage in stages:
        if stage.kind == "adopt":
            anchor = run_folder(recipe) / "anchor" / "checkpoint"
            checkpoint, key = Path(stage.settings["checkpoint"]), f"domains.{stage.domain}"
            if not checkpoint.is_dir():
                faults.add(f"checkpoint {checkpoint} is not a folder", key, absent=True)
                continue
            with faults.of(key):
                if anchor.is_dir():
                    check_branch(checkpoint, anchor)
                else:
                    ModelConfig.load(checkpoint)
        elif stage.kind == "import" and "hf" in stage.settings:
            _check_start(stage, faults)


def _check_start(stage: Stage, faults: Faults) -> None:
    """The model that an `import` stage reads: a folder, or one of the hub, whose weights are
    downloaded where they may be."""
    try:
        folder = local_folder(stage.settings["hf"])
    except BarError as error:
        faults.add(str(error), stage.name, absent=True)
        return
    with faults.of(stage.name):
        hf.model_config_from_hf(folder)
        if stage.name == "anchor" and not (folder / "tokenizer.json").is_file():
            faults.add(f"{folder} has no tokenizer.json", stage.name, absent=True)
        if missing := missing_weights(folder):
            none = next(folder.glob("*.safetensors*"), None) is None  # a config alone, for a plan
            faults.add(f"{folder} lacks the weights, {missing}", stage.name, absent=none)
        else:
            check_import(folder)


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
    exported = models.get("hf")
    if exported is not None and exported.olmo3 is not None and exported.num_experts is not None:
        faults.add("the anchor is OLMo-3, and Hugging Face has no class for OLMo-3 with "
                   "experts; set export=false to stop at the routed checkpoint")
    for stage in stage_graph(recipe):
        try:
            stage.layout.check()
        except BarError:
            continue  # told among the values
        _check_stage(stage, models[stage.name], faults)


def _check_stage(stage: Stage, model: ModelConfig, faults: Faults) -> None:
    if stage.kind == "evaluate":
        # Experts are spread as far as they can be, so the other sizes decide.
        with faults.of(stage.name):
            check_layout(model, stage.layout.fitted(model.num_experts))
    if stage.kind not in TRAINING_KINDS:
        return
    training = training_of(stage)
    with faults.of(stage.name):
        check_layout(model, stage.layout)
    if training.batch_size > 0 < training.micro_batch_size:  # else told among the values
        with faults.of(stage.name):
            check_shares(training.batch_size, stage.layout.data, training.micro_batch_size)
    with faults.of(stage.name):
        check_length(training.sequence_length, stage.layout.context)
    if isinstance(training, Rlvr):
        with faults.of(stage.name):
            check_settings(training, stage.layout)
    groups = list(group_sizes(model))
    with faults.of():
        matching(groups, training.trainable, f"{stage.name}: trainable")
    with faults.of():
        matching(groups, list(training.lr_scale), f"{stage.name}: lr_scale")
    with faults.of():
        check_overrides(training, model, stage.name)


def _check_sources(recipe: Recipe, faults: Faults) -> None:
    """What sources say of themselves: mixtures, and verifiers by name."""
    for stage in stage_graph(recipe):
        if "training" in stage.settings:
            for mixed in [*(training_of(part).data for part in parts_of(stage)),
                          training_of(stage).validation]:
                with faults.of(stage.name):
                    check_mixture(mixed)
        if stage.kind == "rlvr":
            for source in training_of(stage).data:
                with faults.of(stage.name):
                    verifier_for(source)
    tasks = {name: domain.tasks for name, domain in recipe.domains.items()}
    for name, entries in {**tasks, "general": recipe.evaluate.general}.items():
        for source in entries:
            with faults.of(f"tasks of {name}"):
                verifier_for(source)


def check_layout(model: ModelConfig, layout: Layout) -> None:
    """Raise BarError, with the keys that say another, if `layout` can't hold `model`."""
    try:
        model.check(layout)
    except BarError as error:
        raise BarError(f"{error}; a stage's own layout, such as route.training.layout or "
                       "evaluate.layout, goes before the recipe's") from None


def stage_models(recipe: Recipe, dense: ModelConfig) -> dict[str, ModelConfig]:
    """By stage, the model that it makes or, if it makes none, reads."""
    models: dict[str, ModelConfig] = {}
    for stage in stage_graph(recipe):
        if stage.kind in ("pretrain", "import"):
            models[stage.name] = dense
        elif stage.kind in ("branch", "adopt", "merge", "stack"):
            of_branch = stage.kind in ("branch", "adopt")
            models[stage.name] = dense.with_experts(2 if of_branch else len(recipe.domains) + 1)
        else:
            models[stage.name] = models[next(iter(stage.inputs.values()))]
        if stage.kind == "route":
            models[stage.name] = routed_model(stage, models[stage.name])
    return models
