"""Replace, add or drop an expert of a finished run: merge and route again, and nothing else.

What is asked changes the run's recipe, and the recipe is run. Before that, all that the run will
make anew or lose gets a second name in RUN/before: the merged, routed and exported model, what was
measured, and the folders of domains that are replaced or dropped. The model that stood before is
whole there at any moment, and stays until the next upgrade.

Each step may be cut short: what was asked stands in RUN/before/plan.json, the recipe to come in
RUN/before/next.yaml, and both are carried out to the end when the command is given again.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_bar.analysis.runs import read_stages
from megatron_bar.analysis.upgrade import BEFORE, PLAN, Upgrade, read_upgrade
from megatron_bar.checkpoints.adopt import check_branch
from megatron_bar.launch.check import check_recipe
from megatron_bar.launch.local import check_no_slurm_jobs, only_run, run_recipe
from megatron_bar.launch.replacing import LostTraining, confirm_replacing, training_lost
from megatron_bar.launch.stale import stale_stages
from megatron_bar.methods import stage_graph
from megatron_bar.methods.graph import ADAPTING, routing_data
from megatron_bar.methods.load import load_recipe, save_recipe
from megatron_bar.models.config import FILE_NAME as MODEL_FILE
from megatron_bar.recipe.names import EXPORTED
from megatron_bar.recipe.schema import Domain, Recipe
from megatron_bar.runtime.console import say
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.faults import require
from megatron_bar.runtime.files import (
    link_tree,
    read_json,
    remove_folder,
    staging_path,
    whole_folder,
    write_json,
)
from megatron_bar.stages.branch import BranchStage
from megatron_bar.stages.context import read_done
from megatron_bar.stages.route import RouteStage

_RECIPE, _NEXT, _FINISHED = "recipe.yaml", "next.yaml", "upgrade.json"
# What every upgrade makes anew. Benchmarks' scores of the model before are taken away.
_SUITES = "suites"
_MADE_ANEW = (
    "merged",
    "routed",
    EXPORTED,
    "evaluate",
    "report",
    "report.html",
    "routing.html",
    _SUITES,
)
# The last one first.
_STAGES_OF_DOMAIN = (*(kind.KIND for kind in reversed(ADAPTING)), BranchStage.KIND)


@dataclass(frozen=True)
class UpgradeRequest:
    """The changes asked for: domains by name, with their new branch, and overrides of the recipe.

    A branch is a checkpoint, a stage's or a domain's folder of another run, or a recipe (YAML) that
    has a domain of this name, which is then trained here.
    """

    replace: Mapping[str, str] = field(default_factory=dict)
    add: Mapping[str, str] = field(default_factory=dict)
    drop: Sequence[str] = ()
    overrides: Sequence[str] = ()

    @property
    def anything(self) -> bool:
        return bool(self.replace or self.add or self.drop or self.overrides)

    def as_json(self) -> dict[str, Any]:
        return {
            "replace": dict(self.replace),
            "add": dict(self.add),
            "drop": list(self.drop),
            "overrides": list(self.overrides),
        }


def upgrade(
    run: Path,
    asked: UpgradeRequest,
    jobs: int | None = None,
    prepare_only: bool = False,
    yes: bool = False,
) -> Upgrade | None:
    """Change the finished run in folder `run` as `asked`; returns what changed.

    Without anything asked it goes on with an upgrade that was cut short. With `prepare_only` the
    recipe is changed and nothing run, for `run` or `submit` to do; it returns None. Where overrides
    would replace the training of a domain the user is asked, unless `yes`.

    Raises BarError, before anything is changed, for a run that isn't finished, names that are there
    already or aren't, and branches that aren't of this anchor; and as `run_recipe` does.
    """
    run = Path(run)
    if not (run / _RECIPE).is_file():
        raise BarError(f"{run} is no run's folder: {_RECIPE} is missing")
    with only_run(run):
        check_no_slurm_jobs(run)
        begun = _begun(run)
        if begun is None:
            if not asked.anything:
                raise BarError(f"{run}: say what to change, with --replace, --add or --drop")
            changed = _changed(run, asked)
            confirm_replacing(_lost(run, asked, changed), yes)
            _keep(run, asked, changed)
        elif asked.anything and begun != asked.as_json():
            raise BarError(
                f"{run}: another upgrade was begun ({_words(begun)}); finish it with "
                f"megatron-bar upgrade {run}, or take it back with --undo"
            )
        recipe = _apply(run)
    if prepare_only:
        say(f"{run / _RECIPE} is changed; megatron-bar run or submit does the rest")
        return None
    run_recipe(recipe, jobs, yes)
    done = read_upgrade(run)
    assert done is not None  # its run has just ended
    write_json(
        run / _FINISHED,
        dataclasses.asdict(done)
        | {
            "id": _plan(run)["id"],
            "seconds": done.seconds,
            "tokens": done.tokens,
        },
    )
    return done


def undo(run: Path) -> None:
    """Put back what stood before the last upgrade of `run`. Cut short, do it again.

    Raises BarError if nothing is kept.
    """
    run = Path(run)
    kept = run / BEFORE
    if not (kept / PLAN).is_file():
        raise BarError(f"{run} holds nothing to go back to: there is no {BEFORE}/{PLAN}")
    with only_run(run):
        check_no_slurm_jobs(run)
        plan = _plan(run)
        write_json(kept / PLAN, plan | {"undoing": True})
        names = {path.name for path in kept.iterdir()} - {PLAN, _NEXT}
        for name in {*names, *plan["asked"]["add"], *_MADE_ANEW, _FINISHED}:
            _remove(run / name)
            if name in names:
                link_tree(kept / name, run / name)
        remove_folder(kept)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _plan(run: Path) -> dict[str, Any]:
    return read_json(run / BEFORE / PLAN)


def _begun(run: Path) -> dict[str, Any] | None:
    """What was asked of an upgrade that isn't finished."""
    if not (run / BEFORE / PLAN).is_file():
        return None
    plan, finished = _plan(run), run / _FINISHED
    if plan.get("undoing"):
        raise BarError(f"{run}: taking back an upgrade was begun; finish it with --undo")
    if finished.is_file() and read_json(finished)["id"] == plan["id"]:
        return None
    return plan["asked"]


def _words(asked: Mapping[str, Any]) -> str:
    options = [
        f"--{key} {name}={branch}"
        for key in ("replace", "add")
        for name, branch in asked[key].items()
    ]
    return " ".join([*options, *(f"--drop {name}" for name in asked["drop"]), *asked["overrides"]])


def _changed(run: Path, asked: UpgradeRequest) -> Recipe:
    """The run's recipe with the changes in it, checked."""
    recipe = load_recipe(run / _RECIPE)
    # The folder may be called by another name now, or from another place.
    recipe = dataclasses.replace(recipe, runs=str(run.parent), name=run.name)
    if stale := stale_stages(stage_graph(recipe), run):
        raise BarError(
            f"{run} isn't finished: {stale[0].name} is missing, or its settings or "
            f"inputs have changed; finish it first, with megatron-bar run "
            f"{run / _RECIPE}"
        )
    domains = dict(recipe.domains)
    names = [*asked.replace, *asked.add, *asked.drop]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BarError(f"{twice[0]} is named twice; replace, add or drop it")
    for name in (*asked.replace, *asked.drop):
        if name not in domains:
            raise BarError(f"{run} has no domain {name!r}; it has {', '.join(domains)}")
    for name in asked.add:
        if name in domains:
            raise BarError(f"{run} has a domain {name!r} already; use --replace")
    anchor = run / "anchor" / "checkpoint"
    for name, branch in {**asked.replace, **asked.add}.items():
        if Path(branch).resolve().is_relative_to(run.resolve()):
            raise BarError(f"{branch} lies in the run that it is to change; give it another place")
        domains[name] = _domain(name, Path(branch), domains.get(name))
        if (checkpoint := domains[name].checkpoint) is not None:
            check_branch(Path(checkpoint), anchor)
    for name in asked.drop:
        del domains[name]
    changed = _overridden(
        dataclasses.replace(recipe, domains=domains), asked.overrides, run / _RECIPE
    )
    for name in asked.add:
        if not routing_data(changed.domains[name]):
            raise BarError(
                "the branch doesn't tell what data it learned from, and route needs a "
                f"sample of it; say 'domains.{name}.routing=[{{path: FILE}}]'"
            )
    stale = stale_stages(stage_graph(changed), run)
    require(check_recipe(changed, {stage.name for stage in stale}))
    return changed


def _lost(run: Path, asked: UpgradeRequest, changed: Recipe) -> list[LostTraining]:
    """Training that is replaced and isn't what an upgrade is for: domains, and the router."""
    stages = stage_graph(changed)
    meant = {
        stage.name
        for stage in stages
        if isinstance(stage, RouteStage) or stage.domain in asked.replace
    }
    stale = {stage.name for stage in stale_stages(stages, run)}
    return training_lost(stages, run, stale, meant)


def _overridden(recipe: Recipe, overrides: Sequence[str], path: Path) -> Recipe:
    """`recipe` as it is when it is written down and read again with `overrides`."""
    written = staging_path(path)
    try:
        save_recipe(recipe, written)
        return load_recipe(written, overrides, where=f"recipe {path} as it would be")
    finally:
        written.unlink(missing_ok=True)


def _domain(name: str, branch: Path, former: Domain | None) -> Domain:
    """A domain as the recipe is to have it. What the branch doesn't tell stays as it was."""
    if branch.suffix in (".yaml", ".yml"):
        domains = load_recipe(branch).domains
        if name not in domains:
            raise BarError(f"{branch} has no domain {name!r}; it has {', '.join(domains)}")
        found = domains[name]
        return dataclasses.replace(found, tasks=found.tasks or (former.tasks if former else []))
    checkpoint, source = _trained_branch(branch)
    known = [domain for domain in (source, former) if domain is not None]
    return Domain(
        checkpoint=str(checkpoint.resolve()),
        routing=next(filter(None, map(routing_data, known)), []),
        tasks=next(filter(None, (domain.tasks for domain in known)), []),
    )


def _trained_branch(path: Path) -> tuple[Path, Domain | None]:
    """The checkpoint that `path` names, and the domain that it is the end of, if a run tells.

    Raises BarError if there is none, or its stage isn't done.
    """
    if (path / MODEL_FILE).is_file():
        stage = path.parent
        if path.name != "checkpoint" or read_done(stage) is None:
            return path, None
    else:
        stages = [path, *(path / kind for kind in _STAGES_OF_DOMAIN)]
        found = next((s for s in stages if (s / "checkpoint").is_dir()), None)
        if found is None:
            raise BarError(
                f"{path} is neither a branch's checkpoint, nor the folder of a domain "
                "or a stage with one, nor a recipe (.yaml)"
            )
        if read_done(found) is None:
            raise BarError(f"{found} isn't done; finish its run first")
        stage = found
    recipe = stage.parent.parent / _RECIPE
    domains = load_recipe(recipe).domains if recipe.is_file() else {}
    return stage / "checkpoint", domains.get(stage.parent.name)


def _keep(run: Path, asked: UpgradeRequest, changed: Recipe) -> None:
    """Put what the upgrade will replace or remove into RUN/before, with the plan, in one step."""
    stale = stale_stages(stage_graph(changed), run)
    folders = {stage.name.partition("/")[0] for stage in stale}
    with whole_folder(run / BEFORE, overwrite=True) as staging:
        for name in {_RECIPE, *_MADE_ANEW, *folders, *asked.replace, *asked.drop}:
            if (run / name).exists():
                link_tree(run / name, staging / name)
        save_recipe(changed, staging / _NEXT)
        write_json(
            staging / PLAN,
            {
                "id": os.urandom(8).hex(),
                "asked": asked.as_json(),
                "applied": False,
                "stages": {stage["stage"]: stage["id"] for stage in read_stages(run)},
            },
        )


def _apply(run: Path) -> Recipe:
    """Change the run's recipe, and remove what would pass for the work of its stages."""
    plan = _plan(run)
    if not plan["applied"]:
        asked, recipe = plan["asked"], load_recipe(run / BEFORE / _NEXT)
        gone = [*asked["replace"], *asked["drop"], *(f"evaluate/{name}" for name in asked["drop"])]
        for name in [*gone, _SUITES, *([] if recipe.export else [EXPORTED])]:
            _remove(run / name)
        save_recipe(recipe, run / _RECIPE)
        write_json(run / BEFORE / PLAN, plan | {"applied": True})
    return load_recipe(run / _RECIPE)
