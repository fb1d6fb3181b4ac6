"""`megatron-bar rehearse`: a recipe from end to end with a small model, before the real one runs.

The same code runs the same stages, in real ranks, on the recipe's own sources. What is smaller, and
with that unproven, is reported stage by stage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_bar.checkpoints.branch import branch
from megatron_bar.checkpoints.convert import import_hf
from megatron_bar.checkpoints.hub import local_folder
from megatron_bar.checkpoints.tokenizer_files import ChatFormat
from megatron_bar.costs.machine import Machine
from megatron_bar.data.chat_format import load_chat_format
from megatron_bar.launch.check import check_installed, check_recipe
from megatron_bar.launch.local import final_model, run_checked
from megatron_bar.launch.local_scheduler import StagesFailed
from megatron_bar.launch.plan.show import keys_of
from megatron_bar.launch.plan.stages import StagePlan, plan_stages, planned_model
from megatron_bar.launch.rehearse.examine import examine
from megatron_bar.launch.rehearse.fold import folded
from megatron_bar.launch.rehearse.folder import write_small_folder
from megatron_bar.launch.rehearse.proof import prove_export
from megatron_bar.launch.rehearse.rewrite import SmallRun, longest_row, rewritten
from megatron_bar.launch.rehearse.shrink import shrunken
from megatron_bar.methods import stage_graph
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.schema import Recipe
from megatron_bar.runtime.console import say
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.faults import require, wherever
from megatron_bar.runtime.files import write_json
from megatron_bar.stages.context import read_done
from megatron_bar.stages.export_hf import ExportStage
from megatron_bar.stages.stage import Stage

_MARK = "rehearsal.json"  # in a folder that a rehearsal may empty
_CPU_RANKS = 4


@dataclass(frozen=True)
class RehearsalOptions:
    """The options of a rehearsal, besides the recipe."""

    machine: Machine  # that the real run is planned for
    processes: int | None = None  # at once; by default the GPUs, or 4 of a CPU
    model: str | None = None  # the preset that stands in for an anchor that isn't here
    tokenizer: Path | None = None  # a folder or a tokenizer.json, where the anchor has none
    keep: Path | None = None  # where all that is made stays, by default nowhere


@dataclass(frozen=True)
class Rehearsed:
    """The real recipe's plan and the small one's stages, and all that was seen of these."""

    plans: list[StagePlan]
    stages: list[Stage]  # as they were run; none where something was wrong before
    showed: dict[str, list[str]]  # by stage
    faults: list[str]


@dataclass(frozen=True)
class _Cast:
    """The small models, and how they are talked to; None where the run makes its tokenizer."""

    small: SmallRun
    weights: dict[str, str]  # what those of each are
    chat_format: ChatFormat | None


def rehearse(recipe: Recipe, options: RehearsalOptions) -> Rehearsed:
    """Run `recipe` small and short in a folder of its own, and prove what it exports.

    What can be found out from the recipe, its sources and the real model's sizes comes first; if
    something is wrong there, no stage is run.

    Raises BarError for a recipe that asks for what can't be, and for want of a tokenizer.
    """
    if options.model is not None and recipe.anchor and Path(recipe.anchor).is_dir():
        raise BarError(
            f"--model is for an anchor that isn't here, and {recipe.anchor} is; leave it out"
        )
    model = planned_model(recipe, options.model)
    # Weights that aren't here aren't needed, and data that aren't are found by who reads them.
    faults = [str(fault) for fault in wherever(check_recipe(recipe, dense=model))]
    if faults:
        return Rehearsed([], [], {}, faults)
    plans = plan_stages(recipe, model, options.machine)
    with _place(options.keep) as place:
        cast = _cast(recipe, options, model, place.folder)
        examined = examine(recipe, cast.chat_format, model.max_position_embeddings)
        showed = {role: [f"weights: {what}"] for role, what in cast.weights.items()}
        showed |= examined.found
        if faults := [*_too_big(plans, options.machine), *map(str, examined.faults)]:
            return Rehearsed(plans, [], showed, faults)
        short = rewritten(recipe, dataclasses.replace(cast.small, fitting=examined.fitting))
        faults = _run(short, cast.chat_format, showed)
        place.stays = place.stays or bool(faults)
        return Rehearsed(plans, stage_graph(short), showed, faults)


@dataclass
class _Place:
    """A folder for all that is made. It stays where it was asked for, and for logs of failures."""

    folder: Path
    stays: bool


@contextlib.contextmanager
def _place(keep: Path | None) -> Iterator[_Place]:
    """A new folder, or `keep` without what another rehearsal left there.

    Raises BarError where `keep` holds anything else.
    """
    if keep is None:
        place = _Place(Path(tempfile.mkdtemp(prefix="megatron-bar-rehearsal-")), stays=False)
    else:
        if keep.exists() and not (keep / _MARK).is_file():
            raise BarError(f"--keep {keep} exists and is no rehearsal's folder; name another")
        shutil.rmtree(keep, ignore_errors=True)
        keep.mkdir(parents=True)
        write_json(keep / _MARK, {})
        place = _Place(keep, stays=True)
    try:
        yield place
    finally:
        if not place.stays:
            shutil.rmtree(place.folder, ignore_errors=True)


def _cast(recipe: Recipe, options: RehearsalOptions, model: ModelConfig, folder: Path) -> _Cast:
    ranks = options.processes or torch.cuda.device_count() or _CPU_RANKS
    longest = longest_row(model.vocab_size)
    small = SmallRun(folder, f"{recipe.name}-rehearsal", ranks, longest)
    if recipe.pretrain is not None:
        return _Cast(small, {}, None)
    layouts = [folded(stage.layout, ranks) for stage in stage_graph(recipe)]
    sizes = shrunken(model, layouts, window=longest // 2)
    folders, weights = {}, {}
    for role in ("anchor", "pretrained"):
        if (named := getattr(recipe, role)) is None:
            continue
        source = _folder_here(named)
        folders[role] = folder / "models" / role
        tokenizer = options.tokenizer or (folders["anchor"] if role != "anchor" else None)
        weights[role] = write_small_folder(
            folders[role], sizes, source, tokenizer, f"{recipe.seed}/{role}"
        )
    branches = _branches(recipe, folders["anchor"], folder)
    described = ", ".join(f"{role} {what}" for role, what in weights.items())
    say(
        f"small models: {sizes.model.num_layers} layers, hidden {sizes.model.hidden_size}, "
        f"{sizes.model.num_heads} heads; weights: {described}"
    )
    small = dataclasses.replace(
        small,
        branches=branches,
        anchor=folders["anchor"],
        pretrained=folders.get("pretrained"),
    )
    return _Cast(small, weights, load_chat_format(folders["anchor"], recipe.chat_template))


def _branches(recipe: Recipe, anchor: Path, folder: Path) -> dict[str, Path]:
    """Small branches in place of those that domains bring along, whose sizes are the real ones."""
    found: dict[str, Path] = {}
    for name, domain in recipe.domains.items():
        if domain.checkpoint is not None:
            checkpoint = folder / "models" / "checkpoint"
            if not found:
                import_hf(anchor, checkpoint)
            found[name] = folder / "models" / name
            branch(checkpoint, found[name], expert_name=name, seed=recipe.seed)
    return found


def _folder_here(named: str) -> Path | None:
    """The model's folder, if one with its config at least is on this machine."""
    try:
        return local_folder(named, weights=False)
    except BarError:
        return None


def _too_big(plans: list[StagePlan], machine: Machine) -> list[str]:
    return [
        f"{plan.stage.name}: needs {plan.memory.total / 2**30:.0f} GiB of a GPU with "
        f"{machine.memory} GiB; "
        + (f"fits with {keys_of(plan.suggestion)}" if plan.suggestion else "needs more processes")
        for plan in plans
        if plan.too_big
    ]


def _run(short: Recipe, chat_format: ChatFormat | None, showed: dict[str, list[str]]) -> list[str]:
    """Run the stages and prove the model they end with; returns what went wrong.

    `short` isn't checked once more: its data are a few of those that were.

    Raises BarError for packages that aren't installed.
    """
    stages = stage_graph(short)
    require(check_installed(short, [stage.name for stage in stages]))
    faults: list[str] = []
    run = Path(short.runs) / short.name
    try:
        run_checked(short)
    except StagesFailed as error:
        faults += error.failures
    for stage in stages:
        done = read_done(run / stage.name)
        if done is None:
            showed[stage.name] = ["not done"]
        elif isinstance(stage, ExportStage):
            try:
                showed[stage.name] = _proof(short, run, stage, chat_format)
            except BarError as error:
                faults.append(f"{stage.name}: {error}")
        elif summary := done.get("summary"):
            showed.setdefault(stage.name, []).insert(0, summary)
    return faults


def _proof(short: Recipe, run: Path, export: Stage, chat_format: ChatFormat | None) -> list[str]:
    model = final_model(short, run)
    trained = chat_format or load_chat_format(model, None)  # the run made it, and exports no other
    return prove_export(run / export.inputs["checkpoint"] / "checkpoint", model, trained.template)
